"""Peak memory of a training and of drawing, from loading the base on, each in its own process.

    python -m benchmarks.memory [--sd14] [--rounds 3] [--json FILE]

On a GPU it is the most that torch had allocated there; on a CPU the most that the process held,
libraries included ("imports"). With --sd14: random weights of SD 1.4's sizes, 512 px; else the
toybox base.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import RESULTS, report
from benchmarks.sample import our_draw
from benchmarks.workload import (
    add_base_flags,
    folder,
    fresh_base,
    make_accelerator,
    one_step,
    settings,
    training,
)


class Work(NamedTuple):
    """What is measured, in words, and its settings if it is a training; None: drawing."""

    note: str
    changes: dict[str, Any] | None = None


IMPORTS = "imports"
MEASURES: dict[str, Work] = {
    IMPORTS: Work("libraries alone"),
    "train_1_1_checkpointing": Work(
        "batch 1 + 1, gradient checkpointing",
        {"train_batch_size": 1, "gradient_checkpointing": True},
    ),
    "train_2_2": Work("batch 2 + 2, no checkpointing", {"train_batch_size": 2}),
    "sample": Work("a batch of images with their reference"),
}


def peak_gb() -> float:
    """The most memory so far.

    Not by getrusage: its figure outlives exec, so that the parent's peak would count.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


def measure(name: str, args: argparse.Namespace) -> float:
    """Peak of this process after doing `name` once [GB]."""
    if name == IMPORTS:
        return peak_gb()

    changes = MEASURES[name].changes
    with folder() as work:
        base = fresh_base(args)
        config = settings(args, base, work, **(changes or {}))
        if changes is None:
            count = args.batch_size
            prompts = ["a photo of a {}"] * count
            steps = args.denoising_steps
            our_draw(config, base, prompts, count, "ddim", num_inference_steps=steps)(count)
        else:
            trainer = training(config, base, make_accelerator())
            for step in range(1, args.steps + 1):
                one_step(trainer, step)
    return peak_gb()


def peak_of(name: str, words: Sequence[str], rounds: int) -> float:
    """The largest peak of `rounds` processes that each measure `name` [GB]."""
    command = [sys.executable, "-m", "benchmarks.memory", *words, "--measure", name]
    peaks = []
    for _ in range(rounds):
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(float(child.stdout.splitlines()[-1]))
    return max(peaks)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_base_flags(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="images denoised together")
    parser.add_argument("--steps", type=int, default=4, help="training steps")
    parser.add_argument("--denoising_steps", type=int, help="default: the preset's")
    parser.add_argument("--rounds", type=int, default=1, help="processes a figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    parser.add_argument("--measure", choices=MEASURES, help="this one, in this process, as JSON")
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)

    if args.measure:
        print(json.dumps(measure(args.measure, args)))
        return 0

    place = "GPU" if torch.cuda.is_available() else "process"
    names = [name for name in MEASURES if name != IMPORTS or place == "process"]
    peaks = {name: peak_of(name, words, args.rounds) for name in names}
    notes = {f"peak_gb {name}": f"{MEASURES[name].note}; {place}" for name in names}
    report("memory", {"peak_gb": peaks}, args.json, notes=notes, results=args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
