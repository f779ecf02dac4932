"""What shortcuts cost on the toybox: identity, context and style with each of them.

    python -m studies.quality.shortcuts [--json FILE] [--work DIR] [--seeds N]

Shortcuts at sampling: the reference in the conditional half of guidance alone, in a part of the
steps alone, or not at all; other solvers at 20 steps. At training: RRA without the finest level.
All use the bundled subjects, 8 plain and 8 stylized prompts and the same seeds. Differences are
paired, with 95 % intervals.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eqdiff.base.load import load_base
from eqdiff.pipeline import EqDiffPipeline
from studies.quality.subjects import (
    ROOT,
    TOYBOX,
    Measure,
    Row,
    bounds,
    bundled_subjects,
    mean_of,
    taught,
    with_bounds,
)
from toybox.judges import Judges

ALL = ("mid_block", "up_blocks")
COARSE = ("mid_block", "up_blocks.1", "up_blocks.2")
FULL = "full"  # what all are compared with
FIGURES = ("identity", "context", "style")


class Shortcut(NamedTuple):
    """layers: those with RRA; scheduler and options: of the pipeline."""

    layers: tuple[str, ...] = ALL
    scheduler: str = "ddim"
    options: dict[str, Any] = {}


SHORTCUTS: dict[str, Shortcut] = {
    FULL: Shortcut(),
    "conditional half alone": Shortcut(options={"reference_for": "conditional"}),
    "first half of the steps": Shortcut(options={"attention_window": (0.0, 0.5)}),
    "last half of the steps": Shortcut(options={"attention_window": (0.5, 1.0)}),
    "without RRA": Shortcut(options={"rra": False}),
    "ddim, 20 steps": Shortcut(options={"num_inference_steps": 20}),
    "dpm++, 20 steps": Shortcut(scheduler="dpm++", options={"num_inference_steps": 20}),
    "unipc, 20 steps": Shortcut(scheduler="unipc", options={"num_inference_steps": 20}),
    "trained without the finest level": Shortcut(layers=COARSE),
}


def measure_all(
    base: str, judges: Judges, work: Path, seeds: int
) -> tuple[dict[str, list[Row]], dict[str, float]]:
    """Rows of each shortcut over all subjects, and the seconds an image that each took."""
    rows: dict[str, list[Row]] = {name: [] for name in SHORTCUTS}
    seconds = dict.fromkeys(SHORTCUTS, 0.0)
    subjects = bundled_subjects()

    for subject in subjects:
        measure = Measure(subject, judges, seeds)
        pipe = EqDiffPipeline.of(load_base(base))
        for name, (layers, scheduler, options) in SHORTCUTS.items():
            folder = work / ("full" if layers == ALL else "coarse")
            flags = ("--validation_steps", "0", "--rra_layers", *layers)
            pipe.load_concept(str(taught(subject, "noun", folder, *flags)))

            started = time.monotonic()
            images = measure.draw(pipe, scheduler, options)
            seconds[name] += (time.monotonic() - started) / len(images) / len(subjects)
            rows[name] += measure.rows(images)
            print(f"{subject.name}: {name}", flush=True)
    return rows, seconds


def summarize(rows: dict[str, list[Row]], seconds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """shortcut -> seconds an image; of each figure the mean and its paired difference from FULL."""
    table: dict[str, dict[str, Any]] = {}
    for name, part in rows.items():
        table[name] = {"seconds": seconds[name]}
        for figure in FIGURES:
            pairs = zip(part, rows[FULL], strict=True)
            table[name][figure] = mean_of(part, figure)
            table[name][f"{figure}_cost"] = bounds(
                [row[figure] - full[figure] for row, full in pairs]
            )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "shortcuts", metavar="DIR")
    parser.add_argument("--seeds", type=int, default=1, help="pictures a prompt")
    args = parser.parse_args(argv)

    base = str(TOYBOX / "base")
    table = summarize(*measure_all(base, Judges.load(TOYBOX), args.work, args.seeds))
    for name, row in table.items():
        costs = [
            f"{figure} {row[figure]:.3f} {with_bounds(row[f'{figure}_cost'])}" for figure in FIGURES
        ]
        print(f"{name:34} {row['seconds']:.2f} s/image  {'  '.join(costs)}")
    if args.json:
        record = {"base": load_base(base).fingerprint, "table": table}
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
