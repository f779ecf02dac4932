"""Measure drawn pictures: a samples folder and the subject's photos -> CLIP-T, CLIP-I, DINO-I.

python eval_eqdiff.py --samples outputs/mug/samples [--help]

Writes metrics.json and prints a table.
"""

import sys
from collections.abc import Sequence

import eqdiff.process.early  # noqa: F401  first: for Ctrl-C while the rest is imported
from eqdiff.errors import main_guard
from eqdiff.evaluation.samples import (
    find_samples,
    read_samples,
    require_for_base,
    require_same_prompts,
)
from eqdiff.settings.evaluate import EvalConfig
from eqdiff.settings.places import is_bundled
from eqdiff.settings.presets import parse
from eqdiff.wording import say
from toybox.instances import CLASS_NAMES


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(EvalConfig, argv)
    folders = [read_samples(folder, config) for folder in find_samples(config.samples)]
    require_for_base(folders, config)
    if config.pick:
        require_same_prompts(folders)

    # torch takes seconds: only once the folders are right
    from eqdiff.evaluation.run import NOUNS, evaluate
    from toybox.truth import truths

    toy = all(is_bundled(samples.base) for samples in folders)
    reports = evaluate(config, folders, truths, CLASS_NAMES if toy else NOUNS)
    say(f"done: {', '.join(map(str, reports))}")


if __name__ == "__main__":
    main(sys.argv[1:])
