"""What going beyond the same maths costs on the toybox: identity, context and style of each shortcut.

    python benchmarks/shortcuts.py [--json FILE] [--work DIR] [--seeds N]

Shortcuts at sampling: the reference for the conditional half of guidance alone, in a part of the steps alone, not at
all; other solvers at 20 steps. At training: RRA without the finest level. The bundled subjects, 8 plain and 8 stylized
prompts, the same seeds for all; differences are paired, with 95 % intervals.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from toybox_quality import ASSETS, ROOT, bounds, train

from eqdiff.base import load_base
from eqdiff.config import read_prompts
from eqdiff.pipeline import SCHEDULERS, EqDiffPipeline, seed_of
from toybox.instances import instance
from toybox.judges import Judges
from toybox.quality import draw_prompts
from toybox.truth import read_prompt, truth_features
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

COARSE = ("mid_block", "up_blocks.1", "up_blocks.2")
# name -> scheduler, arguments of the pipeline; the first is what all are compared with
AT_SAMPLING: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("ddim", {}),
    "conditional half alone": ("ddim", {"reference_for": "conditional"}),
    "first half of the steps": ("ddim", {"attention_window": (0.0, 0.5)}),
    "last half of the steps": ("ddim", {"attention_window": (0.5, 1.0)}),
    "without RRA": ("ddim", {"rra": False}),
    "ddim, 20 steps": ("ddim", {"num_inference_steps": 20}),
    "dpm++, 20 steps": ("dpm++", {"num_inference_steps": 20}),
    "unipc, 20 steps": ("unipc", {"num_inference_steps": 20}),
}
RETRAINED = {"trained without the finest level": COARSE}
Rows = dict[str, list[dict[str, float]]]


class Measure:
    """The prompts of one subject, and what an instrument sees in pictures of them."""

    def __init__(self, subject: Path, judges: Judges, seeds: int) -> None:
        about = json.loads((subject / "instance.json").read_text())
        who = instance(about["table"], about["class"], about["index"])
        files = [ROOT / "assets" / "prompts" / f"toybox_{kind}.txt" for kind in ("plain", "style")]
        self.jobs = [(p, n) for file in files for p in read_prompts(file) for n in range(seeds)]
        self.words = [read_prompt(prompt) for prompt, _ in self.jobs]
        self.judges = judges
        self.truth = [truth_features(who, c, s, 10_000 + 100 * i, judges) for i, (c, s) in enumerate(self.words)]

    def draw(self, pipe: EqDiffPipeline, scheduler: str, use: dict[str, Any]) -> Tensor:
        pipe.scheduler = SCHEDULERS[scheduler].from_config(pipe.scheduler.config)
        seeds = [seed_of(0, prompt, number) for prompt, number in self.jobs]
        return draw_prompts(pipe, [prompt for prompt, _ in self.jobs], seeds, **use)

    def rows(self, images: Tensor) -> list[dict[str, float]]:
        features, said = self.judges.identity(images), self.judges.name(images)
        names = {"context": CONTEXT_NAMES, "style": STYLE_NAMES}
        rows = []
        for i, asked in enumerate(self.words):
            row = {"identity": float((features[i] @ self.truth[i].T).mean())}
            hits = {k: float(said[k][i]) == names[k].index(w) for k, w in zip(names, asked, strict=True)}
            rows.append(row | {k: float(hit) for k, hit in hits.items()})
        return rows


def measure_all(base: str, judges: Judges, work: Path, seeds: int) -> tuple[Rows, dict[str, float]]:
    """Rows by variant over all subjects, and the seconds an image that each took."""
    rows: Rows = {name: [] for name in (*AT_SAMPLING, *RETRAINED)}
    seconds = dict.fromkeys(rows, 0.0)
    subjects = sorted(path for path in (ROOT / "assets" / "subjects").iterdir() if path.is_dir())
    whole = ("mid_block", "up_blocks")
    for subject in subjects:
        measure, pipe = Measure(subject, judges, seeds), EqDiffPipeline.of(load_base(base))
        variants = {name: ("full", whole, *how) for name, how in AT_SAMPLING.items()}
        variants |= {name: ("coarse", layers, "ddim", {}) for name, layers in RETRAINED.items()}
        for name, (folder, layers, scheduler, use) in variants.items():
            flags = ("--validation_steps", "0", "--rra_layers", *layers)
            pipe.load_concept(str(train(subject, work / folder, *flags)))
            started = time.monotonic()
            images = measure.draw(pipe, scheduler, use)
            seconds[name] += (time.monotonic() - started) / len(images) / len(subjects)
            rows[name] += measure.rows(images)
            print(f"{subject.name}: {name}", flush=True)
    return rows, seconds


def summarize(rows: Rows, seconds: dict[str, float]) -> dict[str, dict[str, Any]]:
    """variant -> seconds an image; mean of each figure, and its paired difference from `full` with bounds."""
    table: dict[str, dict[str, Any]] = {}
    for name, part in rows.items():
        table[name] = {"seconds": seconds[name]}
        for what in ("identity", "context", "style"):
            values = np.array([row[what] for row in part])
            full = np.array([row[what] for row in rows["full"]])
            table[name] |= {what: float(values.mean()), f"{what}_cost": bounds(values - full)}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "shortcuts", metavar="DIR")
    parser.add_argument("--seeds", type=int, default=1, help="pictures a prompt")
    args = parser.parse_args()
    table = summarize(*measure_all(str(ASSETS / "base"), Judges.load(ASSETS), args.work, args.seeds))
    for name, row in table.items():
        costs = "  ".join(
            f"{what} {row[what]:.3f} ({row[f'{what}_cost'][0]:+.3f}, {row[f'{what}_cost'][1]:+.3f} to "
            f"{row[f'{what}_cost'][2]:+.3f})"
            for what in ("identity", "context", "style")
        )
        print(f"{name:34} {row['seconds']:.2f} s/image  {costs}")
    if args.json:
        args.json.write_text(
            json.dumps({"base": load_base(str(ASSETS / "base")).fingerprint, "table": table}, indent=1)
        )


if __name__ == "__main__":
    sys.exit(main())
