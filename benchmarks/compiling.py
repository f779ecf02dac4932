"""What torch.compile costs before the first step and saves at each, in training and in drawing.

    python -m benchmarks.compiling [--sd14] [--parts train draw] [--rounds 8] [--json FILE]

`--compile` of the scripts compiles the transformer blocks of the UNet that is trained or drawn
with. Eager and compiled run in turn in every round. `start`: the first call above a later one, with
nothing kept from before. `start again`: the same in a new process that finds what the first one
left on the disk, imitated by forgetting all but that. `pays from`: the steps after which the
seconds saved have paid for the start. On a CPU: the toybox base, 128 px. With --sd14: random
weights of SD 1.4's sizes, 512 px.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import RESULTS, interleaved, paired_ratio, report, seconds_of
from benchmarks.sample import our_draw
from benchmarks.step import steps_of
from benchmarks.workload import add_base_flags, folder, fresh_base, make_accelerator, settings
from benchmarks.workload import training as prepared_training
from eqdiff.base.compiled import compile_blocks

Act = Callable[[], None]
HOW = {"eager": False, "compiled": True}
KEPT = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps what it has compiled
PROMPT = "a photo of a {} on the beach"


def trainings(args: argparse.Namespace, work: Path) -> dict[str, Act]:
    """Eager and compiled, as what makes the next `args.steps` steps of a training."""
    accelerator = make_accelerator()
    acts = {}
    for name, compiled in HOW.items():
        base = fresh_base(args, frozen_bf16=True)
        config = settings(args, base, work, train_batch_size=args.batch, compile=compiled)
        acts[name] = steps_of(prepared_training(config, base, accelerator), args.steps)
    return acts


def drawings(args: argparse.Namespace, work: Path) -> dict[str, Act]:
    """Eager and compiled, as what draws `args.batch` pictures in `args.steps` steps."""
    acts = {}
    for name, compiled in HOW.items():
        base = fresh_base(args, frozen_bf16=True)
        config = settings(args, base, work)
        prompts = [PROMPT] * args.batch
        draw = our_draw(config, base, prompts, args.batch, "ddim", num_inference_steps=args.steps)
        if compiled:
            compile_blocks(base.unet)  # as --compile of test_eqdiff.py
        acts[name] = lambda draw=draw: draw(args.batch)
    return acts


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Act]]] = {
    "train": trainings,
    "draw": drawings,
}


def measured(acts: dict[str, Act], args: argparse.Namespace) -> dict[str, Any]:
    """Start, seconds a step, their ratio, and from which number of steps compiling pays."""
    torch._dynamo.reset()
    first = {name: seconds_of(act) for name, act in acts.items()}
    torch._dynamo.reset()
    again = seconds_of(acts["compiled"])
    times = interleaved(acts, args.rounds)

    usual = {name: median(each) for name, each in times.items()}
    ratio, bounds = paired_ratio(times["compiled"], times["eager"])
    saved = (usual["eager"] - usual["compiled"]) / args.steps
    start = first["compiled"] - usual["compiled"]
    return {
        "start": start,
        "start again": again - usual["compiled"],
        "start eager": first["eager"] - usual["eager"],
        "seconds a step": {name: each / args.steps for name, each in usual.items()},
        "ratio": ratio,
        "ratio_interval": bounds,
        "pays from": round(start / saved) if saved > 0 else "never",
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_base_flags(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=2, help="photos a step, or pictures")
    parser.add_argument("--rounds", type=int, default=8, help="how often each is timed")
    parser.add_argument("--steps", type=int, default=4, help="steps in a round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    args = parser.parse_args(argv)

    figures: dict[str, Any] = {}
    with folder() as work:
        for part in args.parts:
            os.environ[KEPT] = str(work / f"compiled_{part}")
            figures[part] = measured(PARTS[part](args, work), args)
    notes = {
        f"{part} {name}": text
        for part in args.parts
        for name, text in {
            "start": "seconds before the first step, nothing kept from before",
            "start again": "the same with what torch kept on the disk",
            "ratio": "of a step, compiled / eager; below 1: it saves",
            "ratio_interval": "95 % bounds",
            "pays from": "steps",
        }.items()
    }
    report("compiling", figures, args.json, notes=notes, results=args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
