"""What the VAE says of pictures, and its answers kept on disk by content, so that the next run need not ask again."""

import hashlib
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eqdiff.base import fingerprint
from eqdiff.latents import Encode

LOG = logging.getLogger(__name__)


def cache_root() -> Path:
    """Where everything lies that can be made again: $EQDIFF_CACHE, else ~/.cache/eqdiff."""
    return Path(os.environ.get("EQDIFF_CACHE") or Path.home() / ".cache" / "eqdiff")


def vae_encoder(vae: torch.nn.Module, batch: int = 4) -> Encode:
    """The VAE as a function of pictures (N,3,H,W) -> scaled posterior mean and std (N,4,h,w), fp32 on the CPU."""

    @torch.no_grad()
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(vae.device.type, enabled=False):  # the precision is the VAE's own, also within a step
            parts = [vae.encode(x.to(vae.device, vae.dtype)).latent_dist for x in images.split(batch)]
        scale = vae.config.scaling_factor
        return tuple(scale * torch.cat([getattr(p, name).float().cpu() for p in parts]) for name in ("mean", "std"))

    return encode


@torch.no_grad()
def decode(vae: torch.nn.Module, latents: Tensor) -> Tensor:
    """Scaled latents (N,4,h,w) -> the VAE's pictures (N,3,H,W) on the CPU, one after the other to save memory."""
    with torch.autocast(vae.device.type, enabled=False):
        z = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        return torch.cat([vae.decode(one).sample.float().cpu() for one in z.split(1)])


def vae_mark(vae: torch.nn.Module) -> str:
    """What tells the answers of one VAE from another's: its weights, its precision and its scale."""
    return f"{fingerprint(vae)} {vae.dtype} {vae.config.scaling_factor}"


def picture_key(mark: str, *pictures: Tensor) -> str:
    """A digest of pictures, and of `mark`: what else an answer about them depends on."""
    digest = hashlib.sha256(f"{mark} {tuple(pictures[0].shape)}".encode())
    for tensor in pictures:
        digest.update(tensor.numpy())
    return digest.hexdigest()


def cached_encoder(encode: Encode, folder: Path, mark: str) -> Encode:
    """`encode`, asked only for pictures that folder/<hash of mark and pictures>.safetensors does not answer for.

    mark: what else the answer depends on. A file that is torn or does not fit is made again; a folder that cannot be
    written costs one warning and no more.
    """
    warned = False

    def cached(images: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal warned
        pictures = images.detach().float().cpu().contiguous()
        path = folder / f"{picture_key(mark, pictures)}.safetensors"
        answer = _read(path, len(pictures))
        if answer is None:
            # laid out as it will come from the file: the UNet's sums round by layout, and runs shall agree bit for bit
            answer = tuple(x.contiguous() for x in encode(images))
            try:
                _write(path, *answer)
            except (OSError, SafetensorError) as error:
                if not warned:
                    LOG.warning("latents are not kept for the next run: %s cannot be written (%s)", folder, error)
                warned = True
        return answer

    return cached


def _read(path: Path, count: int) -> tuple[Tensor, Tensor] | None:
    """Mean and std of `count` pictures; None: no such file, or not a whole one of that."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    mean, std = tensors.get("mean"), tensors.get("std")
    whole = mean is not None and std is not None and mean.dtype == std.dtype == torch.float32
    return (mean, std) if whole and mean.ndim == 4 and len(mean) == count and mean.shape == std.shape else None


def _write(path: Path, mean: Tensor, std: Tensor) -> None:
    """Beside, under a name of this process's own, then renamed: nobody ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.partial")
    try:
        save_file({"mean": mean, "std": std}, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
