"""Latent Fisher divergence: how much a concept changes what the base does with other prompts.

Infusion (arXiv 2404.14007) has such a metric and never said how it is computed: this definition is
ours. For a prompt y without the concept,

    LFD(y) = mean over t, eps and z_0 of |eps_new(z_t, t, y) - eps_base(z_t, t, y)|^2 / (4 h w)

with t uniform, and z_0 the base's own pictures of y. Divided by sigma_t^2 it is the Fisher
divergence between the noised distributions, for the score is -eps / sigma: both are given. The
prompts are in three rings: other classes, the class alone, the class in styles.

A concept with RRA attends to its first photo, as it does while it draws.

Axes: B pictures, h, w latent size, Ntok text tokens, D text width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eqdiff.context import ReferenceContext
from eqdiff.drawing.arguments import seed_of
from eqdiff.frequency import Band
from eqdiff.masking import add_noise
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.reference import capture

DRAWS = 8  # of t and eps, for each picture
STYLES = ("a watercolor painting of {}", "an oil painting of {}", "a pencil sketch of {}")
PLACES = ("a photo of {}", "a photo of {} in the snow", "a photo of {} on a beach")
Rings = dict[str, tuple[str, ...]]


def rings_of(class_word: str, others: Sequence[str]) -> Rings:
    """Prompts by ring. others: nouns of other classes."""

    def with_noun(template: str, noun: str) -> str:
        article = "an" if noun[0].lower() in "aeiou" else "a"
        return template.replace("{}", f"{article} {noun}")

    nouns = [noun for noun in others if noun != class_word][: len(PLACES)]
    return {
        "others": tuple(with_noun(PLACES[0], noun) for noun in nouns),
        "class": tuple(with_noun(place, class_word) for place in PLACES),
        "style": tuple(with_noun(style, class_word) for style in STYLES),
    }


def latent_fisher(
    pipe: EqDiffPipeline, rings: Rings, pictures: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Ring -> {"eps": LFD, "score": the same over sigma_t^2}, and "all" for the mean of the rings.

    pipe: with the concept. pictures: of each prompt, drawn by the base with the concept's own
    steps and guidance.
    """
    stock = EqDiffPipeline.of(pipe)
    found = {
        ring: _of_ring(pipe, stock, prompts, pictures, seed) for ring, prompts in rings.items()
    }
    means = {name: sum(f[name] for f in found.values()) / len(found) for name in ("eps", "score")}
    return {**found, "all": means}


@torch.no_grad()
def _of_ring(
    pipe: EqDiffPipeline, stock: EqDiffPipeline, prompts: Sequence[str], pictures: int, seed: int
) -> dict[str, float]:
    """LFD of a ring's prompts, over `pictures` pictures of each and DRAWS of t and eps for each.

    All pictures of the ring are one batch; a prompt's draws do not depend on the other prompts.
    """
    z0 = _drawn(pipe, stock, prompts, pictures, seed)
    texts = [prompt for prompt in prompts for _ in range(pictures)]
    own = [torch.Generator().manual_seed(seed_of(seed, prompt, -1)) for prompt in prompts]
    alphas = pipe.carried.model.alphas_cumprod.to(z0.device)

    eps: list[Tensor] = []
    score: list[Tensor] = []
    for _ in range(DRAWS):
        draws = [_draw(generator, len(alphas), (pictures, *z0.shape[1:])) for generator in own]
        t, noise = (torch.cat(part).to(z0.device) for part in zip(*draws, strict=True))
        alpha_bar = alphas[t]
        z_t = add_noise(z0, noise.to(z0.dtype), alpha_bar)

        change = _new(pipe, z_t, t, texts).float() - _base(stock, z_t, t, texts).float()
        square = change.square().mean((1, 2, 3)).double()
        square = square * _as_eps(stock.scheduler.config.prediction_type, alpha_bar.double())
        eps.append(square)
        score.append(square / (1 - alpha_bar.double()))
    return {"eps": float(torch.cat(eps).mean()), "score": float(torch.cat(score).mean())}


def _draw(generator: torch.Generator, steps: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Timesteps (B,) and noise (B,4,h,w) of a prompt's pictures."""
    t = torch.randint(1, steps, shape[:1], generator=generator)
    return t, torch.randn(shape, generator=generator)


def _drawn(
    pipe: EqDiffPipeline, stock: EqDiffPipeline, prompts: Sequence[str], count: int, seed: int
) -> Tensor:
    """z_0 (B,4,h,w) of the base's own pictures, `count` of each prompt."""
    recipe = pipe.carried.concept.recipe
    wanted = [(prompt, number) for prompt in prompts for number in range(count)]
    return stock(
        [prompt for prompt, _ in wanted],
        seeds=[seed_of(seed, prompt, number) for prompt, number in wanted],
        height=recipe.resolution,
        width=recipe.resolution,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        output_type="latent",
    ).images


def _base(stock: EqDiffPipeline, z: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
    """What the base predicts, each picture with its prompt: (B,4,h,w)."""
    text, _ = stock.encode_prompt(list(prompts), z.device, 1, False)
    return stock.unet(z, t, text, return_dict=False)[0]


def _new(pipe: EqDiffPipeline, z: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
    """What the base predicts with the concept in it: (B,4,h,w)."""
    carried = pipe.carried
    with carried.inside(Band.FULL, z.device):
        text = carried.encode(list(prompts), z.device)
        return carried.model.predict(z, t, text, _reference(carried, z, t))


def _reference(carried: Any, z: Tensor, t: Tensor) -> ReferenceContext:
    """F^r of the concept's first photo at these timesteps; nothing without RRA."""
    model = carried.model
    references = carried.concept.references
    if not model.sites or not len(references.latents):
        return model.context()

    recipe = carried.concept.recipe
    z_r = references.latents[:1].to(z).expand(len(z), -1, -1, -1)
    if recipe.reference_at_sampling == "noised":
        noise = references.noise.to(z).expand(len(z), -1, -1, -1)
        z_r = add_noise(z_r, noise, model.alphas_cumprod.to(z.device)[t])
    text = model.encode_plain([recipe.reference_prompt.replace("{}", recipe.class_word or "")])
    features = capture(model.reference_unet, model.sites, z_r, t, text.expand(len(z), -1, -1))
    return ReferenceContext(features)


def _as_eps(prediction: str, alpha_bar: Tensor) -> Tensor:
    """What a squared change of the prediction is as one of eps: (B,)."""
    factors = {
        "epsilon": torch.ones_like(alpha_bar),
        "v_prediction": alpha_bar,  # eps = sqrt(alpha_bar) v + sigma z
        "sample": alpha_bar / (1 - alpha_bar),  # eps = (z - sqrt(alpha_bar) z0) / sigma
    }
    return factors[prediction]
