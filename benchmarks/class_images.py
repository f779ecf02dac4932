"""What class images cost, and what could take their place: other samplers, fewer steps, matching.

    python -m benchmarks.class_images [--rounds 5] [--pictures 8] [--steps 4] [--json FILE]

Counted at Stable Diffusion 1.4's sizes: all class images of a run, and the run as a whole, with
class images and with `--prior_kind prediction`, which makes none. u is one UNet forward of one
sample. Timed on the toybox, in turn in every round: the making of class images by the training's
own function, and training steps of both priors. Ratios are of medians, with 95 % bounds from
drawing rounds again.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, interleaved, paired_ratio, random_base, report, spread
from benchmarks.counting import build, check_unit, sampling, some_batch
from benchmarks.counting import training as count_training
from benchmarks.step import steps_of
from benchmarks.workload import (
    add_base_flags,
    device_name,
    folder,
    fresh_base,
    make_accelerator,
    settings,
    training,
)
from eqdiff.settings.presets import preset_config
from eqdiff.settings.train import TrainConfig
from eqdiff.training.class_images import class_images

WORD = "mug"
# sampler and steps of a class image at SD 1.4's sizes, the first the default; timed on the toybox
COUNTED = (("ddim", 50), ("dpm++", 20), ("dpm++", 15))
TIMED = (("ddim", 20), ("dpm++", 10), ("dpm++", 8))
PRIORS: dict[str, dict[str, Any]] = {
    "images": {},
    "prediction": {"prior_kind": "prediction"},
    "none": {"with_prior_preservation": False},
}
Act = Callable[[], None]


def counted() -> dict[str, Any]:
    """Class images, a step and a whole run at SD 1.4's sizes [u], with the defaults."""
    u = check_unit(random_base("meta").unet)
    config = preset_config("paper", class_word=WORD)
    parts = sampling(build(config), config.resolution // 8)
    once = parts["text"] + parts["decode"]
    count = config.num_class_images
    pictures = {
        f"{kind} {steps}": count * (steps * parts["plain"] + once) / u for kind, steps in COUNTED
    }

    steps = {name: step_of(replace(config, **prior)) / u for name, prior in PRIORS.items()}
    runs = {name: config.max_train_steps * step for name, step in steps.items()}
    whole = {f"images, {name}": made + runs["images"] for name, made in pictures.items()}
    whole |= {name: runs[name] for name in PRIORS if name != "images"}
    return {"class_images_u": pictures, "step_u": steps, "run_u": whole}


def step_of(config: TrainConfig) -> int:
    """FLOP of a training step; a batch of the prior's kind."""
    batch = some_batch(config)
    if not config.with_prior_preservation:  # `some_batch` always has class images
        n = len(batch.caption)
        batch = replace(batch, z0=batch.z0[:n], noise=batch.noise[:n], t=batch.t[:n])
        batch = replace(batch, mask=batch.mask[:n], noised=batch.noised[:n], bands=batch.bands[:n])
        batch = replace(batch, z_r=batch.z_r[:n], noise_r=batch.noise_r[:n], t_r=batch.t_r[:n])
        batch = replace(batch, mask_r=batch.mask_r[:n])
    return count_training(build(config), batch, parts=False)["step"]


def makers(args: argparse.Namespace, work: Path) -> dict[str, Act]:
    """Class images by each sampler, as what makes `args.pictures` of them anew at each call."""
    base = fresh_base(args)
    numbers = itertools.count()

    def maker(kind: str, steps: int) -> Act:
        config = settings(
            args,
            base,
            work,
            class_scheduler=kind,
            class_inference_steps=steps,
            num_class_images=args.pictures,
        )

        def make() -> None:
            empty = str(work / f"classes-{next(numbers)}")
            new = replace(config, class_data_dir=empty)
            class_images(base, new, torch.device(device_name()), quiet=True)

        return make

    return {f"{kind} {steps}": maker(kind, steps) for kind, steps in TIMED}


def trainers(args: argparse.Namespace, work: Path) -> dict[str, Act]:
    """Trainings with each prior, as what makes the next `args.steps` steps at each call."""
    accelerator = make_accelerator()
    acts = {}
    for name, prior in PRIORS.items():
        base = fresh_base(args, frozen_bf16=True)
        config = settings(args, base, work, **prior)
        acts[name] = steps_of(training(config, base, accelerator), args.steps)
    return acts


def compared(times: dict[str, list[float]]) -> dict[str, Any]:
    """The ratio of each variant to the first one, with its bounds."""
    first, *others = times
    figures: dict[str, Any] = {}
    for name in others:
        figures[name], figures[f"{name} interval"] = paired_ratio(times[name], times[first])
    return figures


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_base_flags(parser)
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant is timed")
    parser.add_argument("--pictures", type=int, default=8, help="class images in a round")
    parser.add_argument("--steps", type=int, default=4, help="training steps in a round")
    parser.add_argument("--count", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = options_of(argv)
    figures = counted() if args.count else {}
    with folder() as work:
        pictures = interleaved(makers(args, work), args.rounds)
        steps = interleaved(trainers(args, work), args.rounds)

    figures["seconds_per_class_image"] = spread(pictures, args.pictures)
    figures["class_image_ratio"] = compared(pictures)
    figures["seconds_per_step"] = spread(steps, args.steps)
    figures["step_ratio"] = compared(steps)
    notes = {f"class_image_ratio {k} {n}": "to the default" for k, n in TIMED[1:]}
    report("class_images", figures, args.json, notes=notes, results=args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
