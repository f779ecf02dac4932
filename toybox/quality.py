"""How good a base is: pictures of held-out captions, and what the judge sees in them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from toybox.captions import plain_caption
from toybox.instances import CLASS_NAMES
from toybox.judges import ATTRIBUTES, Judges
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, held_out


class Triple(NamedTuple):
    """Indexes of a class, a context and a style."""

    class_id: int
    context: int
    style: int

    @property
    def caption(self) -> str:
        return plain_caption(CLASS_NAMES[self.class_id], CONTEXT_NAMES[self.context], STYLE_NAMES[self.style])


def held_out_triples() -> list[Triple]:
    """The 80 triples that the base's training never sees, in a fixed shuffled order."""
    every = [
        Triple(i, j, k)
        for i, name in enumerate(CLASS_NAMES)
        for j, context in enumerate(CONTEXT_NAMES)
        for k, style in enumerate(STYLE_NAMES)
        if held_out(name, context, style)
    ]
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def evaluation_triples(count: int) -> list[Triple]:
    """`count` held-out triples; beyond 80 they come again, to be drawn from other seeds."""
    triples = held_out_triples()
    return [triples[i % len(triples)] for i in range(count)]


def noise_of(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Initial noise (N, *shape), each row from its own seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def generate(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    batch: int = 32,
) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] of a plain pipeline with DDIM."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size
    made = []
    for first in range(0, len(prompts), batch):
        latents = noise_of(seeds[first : first + batch], (4, side, side)).to(pipe.device, pipe.unet.dtype)
        images = pipe(
            list(prompts[first : first + batch]),
            latents=latents,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="pt",
        ).images
        made.append(images.float().cpu().mul(2).sub(1))
    return torch.cat(made)


def draw_prompts(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], *, batch: int = 8, **how: Any) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] of a pipeline that takes a seed a prompt; `how`: its other arguments."""
    firsts = range(0, len(prompts), batch)
    parts = [
        pipe(list(prompts[i : i + batch]), seeds=list(seeds[i : i + batch]), output_type="pt", **how).images
        for i in firsts
    ]
    return torch.cat(parts).float().cpu().mul(2).sub(1)


def accuracies(judges: Judges, images: Tensor, triples: Sequence[Triple]) -> dict[str, float]:
    """Share of pictures in which the judge names the class, context and style that were asked for."""
    said, asked = judges.name(images), torch.tensor(triples)
    return {name: float((said[name] == asked[:, i]).float().mean()) for i, name in enumerate(ATTRIBUTES)}
