"""The arguments of one call of the pipeline: diffusers' own by name, the seeds, the size.

Axes: N images, C channels, h, w latent size.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeVar

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from eqdiff.errors import require
from eqdiff.settings.sample import STRONGEST

STOCK = inspect.signature(StableDiffusionPipeline.__call__)
FORMER = {"callback", "callback_steps"}  # what diffusers still takes, though it names them no more
F = TypeVar("F", bound=Callable[..., Any])


def with_stock_arguments(call: F) -> F:
    """Decorator: tools see the signature of the stock pipeline, then what is `call`'s own."""
    *theirs, rest = STOCK.parameters.values()
    parameters = inspect.signature(call).parameters.values()
    own = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    vars(call)["__signature__"] = STOCK.replace(parameters=[*theirs, *own, rest])
    return call


def by_name(args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments for the stock pipeline by name, those alone that were given.

    None for the number of steps or for guidance is not given. Raises TypeError as the stock
    pipeline does.
    """
    given = dict(STOCK.bind(None, *args, **options).arguments)
    del given["self"]
    given |= given.pop("kwargs", {})
    open_ones = ("num_inference_steps", "guidance_scale")
    return {k: value for k, value in given.items() if value is not None or k not in open_ones}


def require_known(given: dict[str, Any]) -> None:
    """Raises UserError if an argument is none of the pipeline's; diffusers would ignore it."""
    unknown = sorted(given.keys() - STOCK.parameters.keys() - FORMER)
    names = ", ".join(unknown)
    require(not unknown, f"the pipeline has no argument {names}; see help(pipe.__call__)")


def prompt_list(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or several, as a list. Raises UserError if they are no text."""
    fits = isinstance(prompt, str | Sequence)
    require(fits, f"a prompt is text, or a list of texts, not {prompt!r}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    odd = [text for text in prompts if not isinstance(text, str)]
    require(prompts and not odd, f"prompts must be text, not {(odd or [prompts])[0]!r}")
    return prompts


def negatives_for(negative: str | Sequence[str] | None, count: int) -> list[str]:
    """A negative prompt for each of `count` prompts. Raises UserError if there are too few."""
    if negative is None:
        return [""] * count
    negatives = prompt_list(negative)
    if isinstance(negative, str):
        return negatives * count

    number = len(negatives)
    message = f"negative_prompt: {number} for {count} prompts; give a text, or a list of {count}"
    require(number == count, message)
    return negatives


def require_same_length(text: Tensor, negative: Tensor) -> None:
    """Raises UserError unless both, (N,Ntok,D), have as many tokens."""
    tokens = text.shape[1]
    require(
        negative.shape[1] == tokens,
        f"prompt_embeds of {tokens} tokens: give negative_prompt_embeds of as many with them",
    )


def require_layers(clip_skip: int | None, layers: int) -> None:
    """Raises UserError if a text encoder of so many layers cannot leave out that many."""
    fits = clip_skip is None or 0 <= clip_skip < layers
    require(fits, f"clip_skip {clip_skip}: the text encoder has {layers} layers")


def require_strength(strength: float) -> None:
    """Raises UserError unless a factor on the gates is within its range."""
    message = f"reference_strength {strength:g}: must be from 0 to {STRONGEST:g}"
    require(0 <= strength <= STRONGEST, message)


def image_count(given: dict[str, Any]) -> int:
    """How many images a call draws."""
    embeds = given.get("prompt_embeds")
    prompts = len(embeds) if embeds is not None else len(prompt_list(given.get("prompt") or ""))
    return prompts * (given.get("num_images_per_prompt") or 1)


def size_of(given: dict[str, Any], usual: Sequence[int], factor: int) -> tuple[int, int]:
    """Height and width [pixels]: as given, each for itself, else the usual one.

    factor: pixels of a latent cell. Raises UserError if a side is no multiple of 8 and `factor`.
    """
    unit = max(8, factor)
    sides = []
    for name, pixels in zip(("height", "width"), usual, strict=True):
        side = given.get(name) or pixels
        fits = isinstance(side, Integral) and side > 0 and side % unit == 0
        require(fits, f"{name} {side!r}: must be a positive multiple of {unit} pixels")
        sides.append(int(side))
    return sides[0], sides[1]


def seed_of(seed: int, prompt: str, number: int) -> int:
    """The seed of image `number` of a prompt. Batch, process and other prompts do not matter."""
    digest = hashlib.sha256(f"{seed}/{number}/{prompt}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def seed_list(seeds: int | Sequence[int], count: int) -> list[int]:
    """A seed for each of `count` images. Raises UserError if there are more or fewer."""
    numbers = [seeds] if isinstance(seeds, Integral) else list(seeds)
    for number in numbers:
        fits = isinstance(number, Integral) and -(2**63) <= number < 2**64
        require(fits, f"seeds: {number!r} is no whole number of 64 bits")

    message = f"seeds: {len(numbers)} for {count} images; give one for each image"
    require(len(numbers) == count, message)
    return [int(number) for number in numbers]


def seeds_behind(seeds: int | Sequence[int] | None, given: dict[str, Any]) -> tuple[int, ...]:
    """A seed for each image of a call, for draws beside its own.

    Those given; else made of its generators' seeds, or of what torch would draw next. Nothing is
    drawn from a generator, so that the images do not change.
    """
    count = image_count(given)
    if seeds is not None:
        return tuple(seed_list(seeds, count))

    generator = given.get("generator")
    if isinstance(generator, list):
        return tuple(each.initial_seed() for each in generator)
    if generator is None:
        with torch.random.fork_rng(devices=[]):
            first = int(torch.randint(2**62, ()))
    else:
        first = generator.initial_seed()
    return tuple(seed_of(first, "image", number) for number in range(count))


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """z_T (N,C,h,w) of images of `shape` (C,h,w), each drawn on the CPU from its own seed."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)
