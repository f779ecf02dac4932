"""Wall time of drawing prompts with a concept against the plain StableDiffusionPipeline.

    python -m benchmarks.sample [--sd14] [--prompts_count 16 77] [--rounds 5] [--json FILE]

Both draw the same prompts in every round, in turn, in the same steps and batches. The reference's
features are computed anew each time, as a new process would. On a CPU: the toybox base, 128 px, 30
steps. With --sd14 on a GPU: random weights of SD 1.4's sizes, 512 px, 50 steps, bf16.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.common import RESULTS, cast, interleaved, paired_ratio, report, spread
from benchmarks.workload import (
    add_base_flags,
    device_name,
    folder,
    fresh_base,
    fresh_concept,
    settings,
)
from eqdiff.base.load import PRECISIONS, Base, default_precision
from eqdiff.base.schedule import SAMPLERS, sampler
from eqdiff.pipeline import EqDiffPipeline, initial_noise
from eqdiff.settings.places import ASSETS
from eqdiff.settings.prompts import read_prompts
from eqdiff.settings.train import TrainConfig

Draw = Callable[[int], None]  # draws the first n prompts
OPTIONS = ("reference_for", "attention_window", "reference_cache_gb")  # of our pipeline


def batches_of(prompts: list[str], count: int, size: int) -> Iterator[tuple[list[str], range]]:
    """The first `count` prompts in batches of `size`, with their numbers, which are their seeds."""
    for first in range(0, count, size):
        numbers = range(first, min(first + size, count))
        yield prompts[first : numbers.stop], numbers


def our_draw(
    config: TrainConfig,
    base: Base,
    prompts: list[str],
    batch_size: int,
    scheduler: str,
    **options: Any,
) -> Draw:
    """Draws with a concept, whose reference schedule is forgotten before.

    options: arguments of the pipeline.
    """
    model, concept = fresh_concept(config, base)
    pipe = EqDiffPipeline.of(base, sampler(scheduler, base.scheduler.config))
    pipe.attach(model, concept)
    pipe.place(torch.device(device_name()), PRECISIONS[default_precision()])

    def draw(count: int) -> None:
        pipe.attach(model, concept)
        for part, seeds in batches_of(prompts, count, batch_size):
            pipe(part, seeds=seeds, **options)

    return draw


def plain_draw(
    config: TrainConfig,
    base: Base,
    prompts: list[str],
    batch_size: int,
    scheduler: str,
    steps: int | None,
) -> Draw:
    """Draws with diffusers' own pipeline."""
    cast(base, PRECISIONS[default_precision()])
    pipe = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=sampler(scheduler, base.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device_name())

    side = config.resolution // 8
    texts = [prompt.replace("{}", config.class_word) for prompt in prompts]

    def draw(count: int) -> None:
        for part, seeds in batches_of(texts, count, batch_size):
            noise = initial_noise(seeds, (4, side, side))
            pipe(
                part,
                latents=noise.to(pipe.device, pipe.dtype),
                num_inference_steps=steps or config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                height=config.resolution,
                width=config.resolution,
            )

    return draw


def time_both(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of both pipelines for each count of prompts, in every round."""
    listed = read_prompts(ASSETS / "prompts" / "live.txt")
    prompts = [listed[n % len(listed)] for n in range(max(args.prompts_count))]
    use = (prompts, args.batch_size, args.scheduler)
    options = {name: getattr(args, name) for name in OPTIONS}

    with folder() as work:
        base = fresh_base(args, frozen_bf16=True)
        config = settings(args, base, work)
        ours = our_draw(config, base, *use, num_inference_steps=args.steps, **options)
        plain = plain_draw(config, fresh_base(args, frozen_bf16=True), *use, args.steps)

        variants: dict[str, Callable[[], None]] = {}
        for n in args.prompts_count:
            variants[f"ours {n}"] = lambda n=n: ours(n)
            variants[f"plain {n}"] = lambda n=n: plain(n)
        return interleaved(variants, args.rounds)


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_base_flags(parser)
    parser.add_argument(
        "--prompts_count", type=int, nargs="+", default=[16], help="images of the subject"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="images denoised together")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the preset's)")
    parser.add_argument("--scheduler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--reference_for", choices=("both", "conditional"), default="both")
    parser.add_argument(
        "--attention_window", type=float, nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO")
    )
    parser.add_argument("--reference_cache_gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5, help="how often each pipeline is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = options_of(argv)
    times = time_both(args)

    ratios: dict[str, Any] = {}
    for n in args.prompts_count:
        ratio, bounds = paired_ratio(times[f"ours {n}"], times[f"plain {n}"])
        ratios[str(n)] = {"ratio": ratio, "interval": bounds}

    first = args.prompts_count[0]
    figures = {"seconds": spread(times), "sample_ratio_by_n": ratios}
    figures["sample_ratio"] = ratios[str(first)]["ratio"]
    notes = {"sample_ratio": f"ours / plain, {first} prompts in batches of {args.batch_size}"}
    notes |= {f"sample_ratio_by_n {n} interval": "95 % bounds" for n in ratios}
    report("sample", figures, args.json, notes=notes, results=args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
