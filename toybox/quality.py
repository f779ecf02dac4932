"""How good a base is: pictures of held-out captions, and what the judge sees in them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from toybox.captions import plain_caption
from toybox.instances import CLASS_NAMES
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, held_out

Guidance = float | Sequence[float]
LEAST_GUIDANCE = 1 + 1e-6


class Triple(NamedTuple):
    """Indexes of a class, a context and a style."""

    class_id: int
    context: int
    style: int

    @property
    def caption(self) -> str:
        context = CONTEXT_NAMES[self.context]
        return plain_caption(CLASS_NAMES[self.class_id], context, STYLE_NAMES[self.style])


def held_out_triples() -> list[Triple]:
    """The 80 triples that the base's training never sees, in a fixed shuffled order."""
    every = [
        Triple(i, j, k)
        for i, name in enumerate(CLASS_NAMES)
        for j, context in enumerate(CONTEXT_NAMES)
        for k, style in enumerate(STYLE_NAMES)
        if held_out(name, context, style)
    ]

    order = np.random.default_rng(0).permutation(len(every))
    return [every[i] for i in order]


def evaluation_triples(count: int) -> list[Triple]:
    """`count` held-out triples; beyond 80 they come again, to be drawn from other seeds."""
    triples = held_out_triples()
    return [triples[i % len(triples)] for i in range(count)]


def noise_of(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Initial noise (N, *shape), each row from its own seed."""
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def scales_of(guidance: Guidance, steps: int) -> list[float]:
    """The guidance scale of each step: the knots are evenly spaced, the scale linear between them.

    Where it changes it stays above 1: at 1 diffusers leaves the unconditional half out, in the
    middle of a picture too.
    """
    knots = [guidance] if isinstance(guidance, float | int) else list(guidance)
    if len(knots) == 1:
        return [float(knots[0])] * steps

    at = np.linspace(0, len(knots) - 1, steps)
    return [max(float(scale), LEAST_GUIDANCE) for scale in np.interp(at, range(len(knots)), knots)]


def guided(guidance: Guidance, steps: int, first: int = 0) -> dict[str, Any]:
    """The arguments of a diffusers pipeline that draws so many steps with this guidance.

    first: the step that the pipeline begins with, where it is given a picture to finish.
    """
    scales = scales_of(guidance, steps)[first:]

    def next_scale(pipe: Any, step: int, t: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        # diffusers documents this door: a callback may change the scale of the steps that follow
        pipe._guidance_scale = scales[min(step + 1, len(scales) - 1)]
        return tensors

    return {
        "num_inference_steps": steps,
        "guidance_scale": scales[0],
        "callback_on_step_end": next_scale,
    }


def in_batches(some: Callable[[slice], Tensor], count: int, batch: int) -> Tensor:
    """Pictures (count, 3, H, W) in [-1, 1]. some: draws a slice of them, in [0, 1]."""
    parts = [some(slice(first, first + batch)) for first in range(0, count, batch)]
    return torch.cat(parts).float().cpu().mul(2).sub(1)


@torch.no_grad()
def generate(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: Guidance,
    batch: int = 32,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] of a plain pipeline with DDIM.

    guidance: one scale, or the knots of one that changes from step to step, see `scales_of`.
    """
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size
    steered = guided(guidance, steps)

    def some(part: slice) -> Tensor:
        latents = noise_of(seeds[part], (4, side, side)).to(pipe.device, pipe.unet.dtype)
        return pipe(list(prompts[part]), latents=latents, output_type="pt", **steered).images

    return in_batches(some, len(prompts), batch)


def draw_prompts(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], *, batch: int = 8, **options: Any
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] of a pipeline that takes a seed a prompt.

    options: other arguments of the pipeline.
    """

    def some(part: slice) -> Tensor:
        seeds_of = list(seeds[part])
        return pipe(list(prompts[part]), seeds=seeds_of, output_type="pt", **options).images

    return in_batches(some, len(prompts), batch)
