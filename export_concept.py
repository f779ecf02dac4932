"""Bring a learned subject somewhere else: a smaller concept, a textual inversion, a UNet patch.

python export_concept.py --concept outputs/mug --compress 15 [--help]
"""

import sys
from collections.abc import Sequence

import eqdiff.process.early  # noqa: F401  first: for Ctrl-C while the rest is imported
from eqdiff.errors import main_guard
from eqdiff.settings.export import ExportConfig
from eqdiff.settings.presets import parse
from eqdiff.settings.sample import find_concept
from eqdiff.wording import say, start_logging


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(ExportConfig, argv)
    source = find_concept(config.concept)

    from eqdiff.concept.export import export  # torch: only once the settings are right

    start_logging()
    path = export(config, source)
    size = path.stat().st_size
    say(f"done: {path}, {size:,} bytes; {path.parent / 'README.md'} says how to use it")


if __name__ == "__main__":
    main(sys.argv[1:])
