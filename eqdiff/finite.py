"""The one rule for numbers: what is not finite is never written, kept or shown.

Whoever finds such numbers raises `NotFinite`, whose message names the file or the setting that is
to blame.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eqdiff.errors import UserError

LARGE = 1e3  # no healthy weight or latent comes near


class NotFinite(UserError):
    """Numbers are not finite, and the message says what is to blame."""


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. It waits for the device."""
    if not tensor.is_floating_point():
        return True
    # a sum is one pass and needs no memory; only if it overflows each value is looked at
    total = tensor.sum(dtype=torch.float32)
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def first_broken(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a value that is not finite; None if there is none."""
    return next((name for name, tensor in named if not is_finite(tensor)), None)


def require_usable(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError that names the first tensor no UNet or text encoder can take.

    Norms square what they are given: the squares of a tensor must have a finite sum in fp32.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(f"{name} holds values that are not finite")
        if tensor.is_floating_point() and not tensor.float().square().sum().isfinite():
            largest = float(tensor.abs().max())
            raise ValueError(f"{name} holds values up to {largest:.1g}, too large to draw with")


def without_nan(value: Any) -> Any:
    """The same lists, tuples and dicts with None for what JSON does not have: NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def only_finite(call: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a pipeline's __call__: it raises NotFinite in place of black pictures.

    Nothing is read from the device before the pictures are there.
    """

    @functools.wraps(call)
    def checked(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        with _watched(getattr(pipe.vae, "decoder", None)) as seen:
            result = call(pipe, *args, **kwargs)

        images = result[0]
        latents = [images] if torch.is_tensor(images) and not seen else []
        flags = [*seen, *((latent.isfinite().all(),) * 2 for latent in latents)]
        if all(bool(after) for _, after in flags):
            return result
        culprit = blame(pipe, decoder=all(bool(before) for before, _ in flags))
        raise NotFinite(f"the pictures are no finite numbers, so none is shown or kept: {culprit}")

    return checked


@contextmanager
def _watched(decoder: nn.Module | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within: of each call of a VAE's decoder, whether what goes in and what comes out is finite.

    Both are flags on the device. None: a VAE of another kind, of which nothing is seen.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def look(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0].isfinite().all(), output.isfinite().all()))

    hook = decoder.register_forward_hook(look) if decoder is not None else None
    try:
        yield seen
    finally:
        if hook is not None:
            hook.remove()


def blame(pipe: Any, *, decoder: bool) -> str:
    """What made the pictures of a pipeline not finite, and what to do, in words.

    decoder: whether the latents were finite, so that the VAE's decoder alone is left.
    """
    dtype = str(pipe.unet.dtype).removeprefix("torch.")
    in_full = "--mixed_precision no, in Python .to(torch.float32)"
    learned = pipe.learned()
    parts = {
        "the concept": learned.items(),
        "the base's UNet": pipe.unet.named_parameters(),
        "the base's text encoder": pipe.text_encoder.named_parameters(),
        "the base's VAE": pipe.vae.named_parameters(),
    }
    for part, named in parts.items():
        broken = first_broken(named)
        if broken:
            return (
                f"{part} has values in {broken} that are not finite in {dtype}; "
                f"draw in full precision ({in_full}), or get the file again"
            )

    scheduler = pipe.scheduler
    if scheduler.config.get("rescale_betas_zero_snr") and not decoder:
        target = scheduler.config.get("prediction_type")
        if target == "epsilon":
            return (
                "the base's scheduler_config.json has rescale_betas_zero_snr and prediction_type "
                "epsilon; set v_prediction if it was trained so, else timestep_spacing leading"
            )

    sizes = {name: float(value.detach().abs().max()) for name, value in learned.items()}
    largest = max(sizes, key=sizes.__getitem__, default="")
    if sizes and sizes[largest] > LARGE:
        return f"the concept's {largest} reaches {sizes[largest]:.1g}; train it again"
    where = "the VAE's decoder" if decoder else f"guidance_scale {pipe.guidance_scale:g}"
    return f"{where} is too much for {dtype}; draw in full precision ({in_full}), or lower guidance"
