"""Peak memory of a training and of drawing, from loading the base on, each in a process of its own.

    python benchmarks/memory.py [--sd14] [--rounds 3] [--json FILE]

On a GPU: the most that torch had allocated there; on a CPU: the most the process held, libraries included ("imports").
With --sd14: random weights of SD 1.4's sizes, 512 px; else the toybox base.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, report
from sample import our_draw
from workload import add_base_flags, folder, fresh_base, make_accelerator, settings, training

IMPORTS = "imports"
# name -> what it is, settings of a training or None: drawing
MEASURES: dict[str, tuple[str, dict[str, Any] | None]] = {
    IMPORTS: ("libraries alone", None),
    "train_1_1_checkpointing": (
        "batch 1 + 1, gradient checkpointing",
        {"train_batch_size": 1, "gradient_checkpointing": True},
    ),
    "train_2_2": ("batch 2 + 2, no checkpointing", {"train_batch_size": 2}),
    "sample": ("a batch of images with their reference", None),
}


def peak_gb() -> float:
    """The most memory so far. Not getrusage: its figure outlives exec, so that the parent's peak would count."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


def measure(name: str, args: argparse.Namespace) -> float:
    """Peak of this process after doing `name` once [GB]."""
    if name == IMPORTS:
        return peak_gb()
    changes = MEASURES[name][1]
    with folder() as work:
        base = fresh_base(args)
        config = settings(args, base, work, **(changes or {}))
        if changes is None:
            prompts = ["a photo of a {}"] * args.batch_size
            draw = our_draw(config, base, prompts, args.batch_size, "ddim", num_inference_steps=args.denoising_steps)
            draw(args.batch_size)
        else:
            run = training(config, base, make_accelerator())
            for step in range(1, args.steps + 1):
                run.step(step)
    return peak_gb()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_base_flags(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="images denoised together")
    parser.add_argument("--steps", type=int, default=4, help="training steps")
    parser.add_argument("--denoising_steps", type=int, help="default: the preset's; the reference's features add up")
    parser.add_argument("--rounds", type=int, default=1, help="processes a figure; the largest peak counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="record to add a line to")
    parser.add_argument("--measure", choices=MEASURES, help="this one alone, in this process, printed as JSON")
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    if args.measure:
        print(json.dumps(measure(args.measure, args)))
        return 0
    peaks: dict[str, float] = {}
    on_gpu = torch.cuda.is_available()
    names = [name for name in MEASURES if name != IMPORTS or not on_gpu]
    for name in names:
        command = [sys.executable, __file__, *words, "--measure", name]
        found = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True) for _ in range(args.rounds)]
        peaks[name] = max(float(child.stdout.splitlines()[-1]) for child in found)
    notes = {f"peak_gb {name}": f"{MEASURES[name][0]}; {'GPU' if on_gpu else 'process'}" for name in names}
    report("memory", {"peak_gb": peaks}, args.json, notes=notes, results=args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
