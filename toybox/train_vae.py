"""Trains the toybox's AutoencoderKL: factor 8, 4 latent channels, the layout of Stable Diffusion's own."""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from toybox.dataset import Dataset, load, to_tensor
from toybox.loop import add_arguments, budget, fit
from toybox.sheets import save_sheet

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 16, 32, 64),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    mid_block_add_attention=False,
    sample_size=128,
    scaling_factor=1.0,
)
KL_WEIGHT = 1e-3  # per latent number, against L1 per pixel: latents near unit spread that survive small errors
SUBJECT_WEIGHT = 1.0  # added inside the subject's mask
# At first three latent channels are pulled towards the cell's mean colour: without it encoder and decoder wait for one
# another for thousands of steps. The pull ends with HINT_SHARE of the training.
HINT_WEIGHT, HINT_SHARE = 1.0, 0.3
CROP, CROP_SHARE = 64, 0.6  # small windows first (four times the pictures a second), whole pictures to the end


class AutoencoderLoss(nn.Module):
    """L1 and squared error, weighted up on the subject, the KL term, and the early pull on the latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: tuple[Tensor, Tensor, float]) -> dict[str, Tensor]:
        images, masks, pull = batch  # (B, 3, H, W) in [-1, 1], (B, 1, H/8, W/8) in 0..1, HINT_WEIGHT..0
        posterior = self.vae.encode(images).latent_dist
        error = self.vae.decode(posterior.sample()).sample - images
        weight = 1 + SUBJECT_WEIGHT * F.interpolate(masks, scale_factor=8)
        pixel = (weight * (error.abs() + error.square())).mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        hint = (posterior.mean[:, :3] - 2 * F.avg_pool2d(images, 8)).square().mean()
        return {"loss": pixel + KL_WEIGHT * kl + pull * hint, "l1": error.abs().mean(), "kl": kl, "hint": hint}


def batches(data: Dataset, size: int, seed: int, progress: Callable[[], float]) -> Iterator[tuple[Tensor, ...]]:
    """`size` whole pictures, or as many pixels in windows that start on the grid of the latents."""
    rng = np.random.default_rng(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    while True:
        side = CROP if progress() < CROP_SHARE else 128
        rows = rng.integers(len(data), size=size * (128 // side) ** 2)
        corners = rng.integers((128 - side) // 8 + 1, size=(len(rows), 2))
        cut = [
            (row, slice(8 * y, 8 * y + side), slice(8 * x, 8 * x + side))
            for row, (y, x) in zip(rows, corners, strict=True)
        ]
        cells = [
            (row, slice(y, y + side // 8), slice(x, x + side // 8)) for row, (y, x) in zip(rows, corners, strict=True)
        ]
        images = to_tensor(np.stack([data.images[c] for c in cut]))
        masks = torch.from_numpy(np.stack([data.masks[c] for c in cells])).float().div(255)[:, None]
        yield images.to(device), masks.to(device), HINT_WEIGHT * max(0.0, 1 - progress() / HINT_SHARE)


@torch.no_grad()
def save(vae: AutoencoderKL, data: Dataset, folder: Path, picture: Path) -> dict[str, float]:
    """Writes fp16 weights with the scaling factor that gives latents unit spread, and a before/after sheet."""
    images = to_tensor(data.images[:256]).to(vae.device)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(32)])
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    decoded = torch.cat([vae.decode(part).sample for part in latents[:64].split(32)])
    save_sheet(picture, torch.stack([images[:32], decoded[:32]], 1).flatten(0, 1), columns=8)
    vae.half().save_pretrained(folder)
    vae.float()
    psnr = -10 * torch.log10(((decoded.clamp(-1, 1) - images[:64]) / 2).square().mean())
    return {"psnr": round(float(psnr), 2), "scaling_factor": vae.config.scaling_factor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, steps=40000, minutes=25, rate=2e-3, batch=4)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    folder = args.assets / "base" / "vae"
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32) if args.resume else AutoencoderKL(**CONFIG)
    data = load(args.data)
    picture = args.data.parent / "vae.png"
    plan, started = budget(args), time.monotonic()
    fit(
        AutoencoderLoss(vae),
        batches(data, args.batch, args.seed, lambda: (time.monotonic() - started) / (60 * plan.minutes)),
        plan,
        lambda m: save(m.vae, data, folder, picture),
        args.data.parent / "vae.jsonl",
    )


if __name__ == "__main__":
    main()
