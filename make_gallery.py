"""Write a page that shows runs and opens without a server: photos, masks, previews, pictures.

python make_gallery.py --runs outputs/mug [--help]
"""

import sys
from collections.abc import Sequence

import eqdiff.process.early  # noqa: F401  first: for Ctrl-C while the rest is imported
from eqdiff.errors import main_guard
from eqdiff.settings.gallery import GalleryConfig
from eqdiff.settings.presets import parse
from eqdiff.wording import say, start_logging


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(GalleryConfig, argv)

    # what reads pictures takes seconds: only once the settings are right
    from eqdiff.gallery.page import make_page

    start_logging()
    page = make_page(config)
    say(f"done: open {page} in a browser; it needs no server and no network")


if __name__ == "__main__":
    main(sys.argv[1:])
