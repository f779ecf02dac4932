"""Wall time of our training step against ablation A's, with cached latents and with a live VAE.

    python -m benchmarks.step [--sd14] [--rounds 10] [--steps 4] [--json FILE]

All variants run in every round, in turn. Ratios are of medians, with 95 % bounds from drawing
rounds again. On a CPU: the toybox base, 128 px, batch 2 + 2. With --sd14 on a GPU: random weights
of SD 1.4's sizes, 512 px, bf16.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, interleaved, paired_ratio, report, spread
from benchmarks.workload import (
    ABLATION_A,
    add_base_flags,
    folder,
    fresh_base,
    make_accelerator,
    one_step,
    settings,
    training,
)
from eqdiff.training.trainer import Trainer

# name -> settings
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ablation_a": ABLATION_A,
    "ours_live_vae": {"latent_cache": False},
    "ablation_a_live_vae": {**ABLATION_A, "latent_cache": False},
}
CHANNELS_LAST = "ours_channels_last"
# key -> variant, the variant it is compared with, what that says
RATIOS = {
    "step_ratio": ("ours", "ablation_a", "ours / ablation A, both with cached latents"),
    "step_ratio_live_vae": (
        "ours",
        "ablation_a_live_vae",
        "ours / ablation A with the VAE at every step",
    ),
    "live_vae_ratio": ("ours_live_vae", "ours", "what --no_latent_cache costs us"),
    "channels_last_ratio": (CHANNELS_LAST, "ours", "below 1: channels-last pays"),
}


def steps_of(trainer: Trainer, count: int) -> Callable[[], None]:
    """What makes the next `count` steps of a training at each call."""
    numbers = itertools.count(1)

    def make_steps() -> None:
        for step in itertools.islice(numbers, count):
            one_step(trainer, step)

    return make_steps


def prepare(args: argparse.Namespace, work: Path) -> dict[str, Callable[[], None]]:
    """The variants, each with a model of its own, as what makes `args.steps` steps."""
    accelerator = make_accelerator()
    chosen = VARIANTS | ({CHANNELS_LAST: {}} if args.channels_last else {})
    common = {
        "train_batch_size": args.batch,
        "compile": args.compile,
        "gradient_checkpointing": args.gradient_checkpointing,
    }

    variants: dict[str, Callable[[], None]] = {}
    for name, changes in chosen.items():
        base = fresh_base(args, frozen_bf16=True)
        config = settings(args, base, work, **common, **changes)
        trainer = training(config, base, accelerator)
        if name == CHANNELS_LAST:
            for unet in (trainer.model.unet, trainer.model.reference_unet):
                unet.to(memory_format=torch.channels_last)
        variants[name] = steps_of(trainer, args.steps)
    return variants


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_base_flags(parser)
    parser.add_argument("--batch", type=int, default=2, help="photos a step; as many class images")
    parser.add_argument("--rounds", type=int, default=10, help="how often each variant is timed")
    parser.add_argument("--steps", type=int, default=4, help="training steps in a round")
    parser.add_argument("--compile", action="store_true", help="compile the transformer blocks")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="in all variants")
    parser.add_argument("--channels_last", action="store_true", help="time that layout too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    args = parser.parse_args(argv)

    with folder() as work:
        times = interleaved(prepare(args, work), args.rounds)

    figures: dict[str, Any] = {"seconds_per_step": spread(times, args.steps)}
    notes = {}
    for key, (variant, other, note) in RATIOS.items():
        if variant in times:
            figures[key], figures[f"{key}_interval"] = paired_ratio(times[variant], times[other])
            notes[key] = note
            notes[f"{key}_interval"] = "its 95 % bounds"
    report("step", figures, args.json, notes=notes, results=args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
