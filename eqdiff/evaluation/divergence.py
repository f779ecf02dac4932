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

from collections.abc import Mapping, Sequence
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
    found = {}
    for ring, prompts in rings.items():
        each = [_of_prompt(pipe, stock, prompt, pictures, seed) for prompt in prompts]
        found[ring] = _mean(each)
    return {**found, "all": _mean(list(found.values()))}


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(f[name] for f in figures) / len(figures) for name in ("eps", "score")}


@torch.no_grad()
def _of_prompt(
    pipe: EqDiffPipeline, stock: EqDiffPipeline, prompt: str, pictures: int, seed: int
) -> dict[str, float]:
    """LFD of a prompt, over `pictures` pictures and DRAWS of t and eps for each."""
    z0 = _drawn(pipe, stock, prompt, pictures, seed)
    generator = torch.Generator().manual_seed(seed_of(seed, prompt, -1))
    alphas = pipe.carried.model.alphas_cumprod
    device = z0.device

    eps: list[Tensor] = []
    score: list[Tensor] = []
    for _ in range(DRAWS):
        t = torch.randint(1, len(alphas), (pictures,), generator=generator).to(device)
        noise = torch.randn(z0.shape, generator=generator).to(device, z0.dtype)
        alpha_bar = alphas.to(device)[t]
        z_t = add_noise(z0, noise, alpha_bar)

        change = _new(pipe, z_t, t, prompt).float() - _base(stock, z_t, t, prompt).float()
        square = change.square().mean((1, 2, 3)).double()
        square = square * _as_eps(stock.scheduler.config.prediction_type, alpha_bar.double())
        eps.append(square)
        score.append(square / (1 - alpha_bar.double()))
    return {"eps": float(torch.cat(eps).mean()), "score": float(torch.cat(score).mean())}


def _drawn(
    pipe: EqDiffPipeline, stock: EqDiffPipeline, prompt: str, count: int, seed: int
) -> Tensor:
    """z_0 (B,4,h,w) of the base's own pictures of a prompt."""
    recipe = pipe.carried.concept.recipe
    seeds = [seed_of(seed, prompt, number) for number in range(count)]
    return stock(
        [prompt] * count,
        seeds=seeds,
        height=recipe.resolution,
        width=recipe.resolution,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        output_type="latent",
    ).images


def _base(stock: EqDiffPipeline, z: Tensor, t: Tensor, prompt: str) -> Tensor:
    """What the base predicts: (B,4,h,w)."""
    text, _ = stock.encode_prompt([prompt], z.device, 1, False)
    return stock.unet(z, t, text.expand(len(z), -1, -1), return_dict=False)[0]


def _new(pipe: EqDiffPipeline, z: Tensor, t: Tensor, prompt: str) -> Tensor:
    """What the base predicts with the concept in it: (B,4,h,w)."""
    carried = pipe.carried
    with carried.inside(Band.FULL, z.device):
        text = carried.encode([prompt], z.device)
        context = _reference(carried, z, t)
        return carried.model.predict(z, t, text.expand(len(z), -1, -1), context)


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
