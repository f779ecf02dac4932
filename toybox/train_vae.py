"""Trains the toybox's AutoencoderKL: factor 8, 4 latent channels, the layout of Stable Diffusion's own."""

import argparse
from collections.abc import Iterator
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
    norm_num_groups=8,
    sample_size=128,
    scaling_factor=1.0,
)
KL_WEIGHT = 1e-3  # per latent number, against L1 per pixel: latents near unit spread that survive small errors
EDGE_WEIGHT = 0.5
SUBJECT_WEIGHT = 1.0  # added inside the subject's mask


class AutoencoderLoss(nn.Module):
    """L1 on pixels and on their differences, weighted up on the subject, and the KL term."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, masks = batch  # (B, 3, 128, 128) in [-1, 1], (B, 1, 16, 16) in 0..1
        posterior = self.vae.encode(images).latent_dist
        error = self.vae.decode(posterior.sample()).sample - images
        weight = 1 + SUBJECT_WEIGHT * F.interpolate(masks, scale_factor=8)
        pixel = (weight * error.abs()).mean()
        edge = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = pixel + EDGE_WEIGHT * edge + KL_WEIGHT * kl
        return {"loss": loss, "pixel": pixel, "edge": edge, "kl": kl}


def batches(data: Dataset, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    while True:
        rows = np.sort(rng.integers(len(data), size=size))
        masks = torch.from_numpy(data.masks[rows]).float().div(255)[:, None]
        yield to_tensor(data.images[rows]).to(device), masks.to(device)


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
    add_arguments(parser, steps=20000, minutes=25, rate=2e-3, batch=8)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    folder = args.assets / "base" / "vae"
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32) if args.resume else AutoencoderKL(**CONFIG)
    data = load(args.data)
    picture = args.data.parent / "vae.png"
    module = AutoencoderLoss(vae)
    fit(
        module,
        batches(data, args.batch, args.seed),
        budget(args),
        lambda m: save(m.vae, data, folder, picture),
        args.data.parent / "vae.jsonl",
    )


if __name__ == "__main__":
    main()
