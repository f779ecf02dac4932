"""VAE encoding and decoding, with an on-disk cache keyed by content."""

import hashlib
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eqdiff.base.identity import fingerprint
from eqdiff.data.latents import Encode
from eqdiff.errors import UserError
from eqdiff.files import replacing
from eqdiff.finite import NotFinite, first_broken, is_finite

LOG = logging.getLogger(__name__)


def cache_root() -> Path:
    """The folder of everything that can be made again: $EQDIFF_CACHE, else ~/.cache/eqdiff.

    Raises UserError if neither is known: a container's user may have no home.
    """
    named = os.environ.get("EQDIFF_CACHE")
    try:
        return Path(named) if named else Path.home() / ".cache" / "eqdiff"
    except RuntimeError:
        raise UserError(
            "there is no home folder to keep class images and latents in; "
            "name another: EQDIFF_CACHE=FOLDER"
        ) from None


def vae_encoder(vae: torch.nn.Module, batch: int = 4) -> Encode:
    """The VAE as a function: pictures (N,3,H,W) -> scaled posterior mean and std (N,4,h,w).

    They are fp32 on the CPU. batch: pictures encoded together. It raises NotFinite where the VAE
    gives numbers that are not finite.
    """

    @torch.no_grad()
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        # no autocast: the precision is the VAE's own, also within a training step
        with torch.autocast(vae.device.type, enabled=False):
            parts = [
                vae.encode(some.to(vae.device, vae.dtype)).latent_dist
                for some in images.split(batch)
            ]

        scale = vae.config.scaling_factor
        _require_finite(vae, *(value for part in parts for value in (part.mean, part.std)))
        mean = scale * torch.cat([part.mean.float().cpu() for part in parts])
        std = scale * torch.cat([part.std.float().cpu() for part in parts])
        return mean, std

    return encode


@torch.no_grad()
def decode(vae: torch.nn.Module, latents: Tensor) -> Tensor:
    """Scaled latents (N,4,h,w) -> pictures (N,3,H,W) on the CPU.

    They are decoded one after the other to save memory. Raises NotFinite if the VAE gives numbers
    that are not finite.
    """
    with torch.autocast(vae.device.type, enabled=False):
        z = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        pictures = torch.cat([vae.decode(one).sample.float().cpu() for one in z.split(1)])
    _require_finite(vae, pictures)
    return pictures


def _require_finite(vae: torch.nn.Module, *values: Tensor) -> None:
    """Raises NotFinite, which names the VAE, unless all that it gave is finite."""
    if all(map(is_finite, values)):
        return
    dtype = str(vae.dtype).removeprefix("torch.")
    broken = first_broken(vae.named_parameters())
    reason = f"{broken} is damaged" if broken else f"they are too much for {dtype}"
    raise NotFinite(
        f"the base's VAE makes numbers of these pictures that are not finite ({reason}); "
        "name another base"
    )


def vae_key(vae: torch.nn.Module) -> str:
    """What the latents of a picture depend on: the VAE's weights, its precision and its scale."""
    return f"{fingerprint(vae)} {vae.dtype} {vae.config.scaling_factor}"


def picture_key(key: str, *pictures: Tensor) -> str:
    """A digest of pictures on the CPU and of `key`: of all that their latents depend on."""
    digest = hashlib.sha256(f"{key} {tuple(pictures[0].shape)}".encode())
    for tensor in pictures:
        digest.update(tensor.numpy())
    return digest.hexdigest()


def cached_encoder(encode: Encode, folder: Path, key: str) -> Encode:
    """`encode` with its results cached in files of `folder`. Calls `encode` only on a cache miss.

    key: what else the results depend on. A file that is damaged or does not fit counts as a miss.
    If the folder cannot be written, there is one warning and no cache.
    """
    warned = False

    def cached(images: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal warned
        pictures = images.detach().float().cpu().contiguous()
        path = folder / f"{picture_key(key, pictures)}.safetensors"
        latents = _read(path, len(pictures))
        if latents is not None:
            return latents

        # contiguous, as they will be when they come from the file: the UNet rounds by memory
        # layout, and both runs must give the same bits
        mean, std = encode(images)
        mean = mean.contiguous()
        std = std.contiguous()
        try:
            _write(path, mean, std)
        except UserError as error:
            if not warned:
                LOG.warning("latents are not kept for the next run: %s", error)
            warned = True

        return mean, std

    return cached


def _read(path: Path, count: int) -> tuple[Tensor, Tensor] | None:
    """Mean and std of `count` pictures; None if there is no such file, or no whole one of them."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None

    mean = tensors.get("mean")
    std = tensors.get("std")
    if mean is None or std is None or not mean.dtype == std.dtype == torch.float32:
        return None

    fits = mean.ndim == 4 and len(mean) == count and mean.shape == std.shape
    return (mean, std) if fits and is_finite(mean) and is_finite(std) else None


def _write(path: Path, mean: Tensor, std: Tensor) -> None:
    with replacing(path, shared=True) as beside:
        save_file({"mean": mean, "std": std}, beside)
