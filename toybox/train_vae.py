"""Trains the toybox's AutoencoderKL: factor 8, 4 latent channels, Stable Diffusion's layout."""

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
from toybox.loop import add_arguments, budget, fit, progress_of
from toybox.sheets import save_sheet
from toybox.world import STYLE_NAMES, draw, random_scene

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 16, 48, 96),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    mid_block_add_attention=False,
    sample_size=128,
    scaling_factor=1.0,
)
# per latent number, against L1 per pixel: latents near unit spread that survive small errors
KL_WEIGHT = 5e-4
SUBJECT_WEIGHT = 1.0  # added inside the subject's mask
# At first three latent channels are pulled towards the cell's mean colour: without it encoder and
# decoder wait for one another for thousands of steps.
HINT_WEIGHT = 1.0
HINT_SHARE = 0.3  # of the training, then the pull has ended
# Windows come first (four times the pictures a second), whole pictures at the end.
CROP = 64  # side of a window [pixels]
CROP_SHARE = 0.6  # of the training


class AutoencoderLoss(nn.Module):
    """L1 and squared error, more on the subject; the KL term; the early pull on the latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, batch: tuple[Tensor, Tensor, float]) -> dict[str, Tensor]:
        # (B, 3, H, W) in [-1, 1], (B, 1, H/8, W/8) in 0..1, HINT_WEIGHT..0
        images, masks, pull = batch
        posterior = self.vae.encode(images).latent_dist
        error = self.vae.decode(posterior.sample()).sample - images

        weight = 1 + SUBJECT_WEIGHT * F.interpolate(masks, scale_factor=8)
        pixel = (weight * (error.abs() + error.square())).mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        hint = (posterior.mean[:, :3] - 2 * F.avg_pool2d(images, 8)).square().mean()

        total = pixel + KL_WEIGHT * kl + pull * hint
        return {"loss": total, "l1": error.abs().mean(), "kl": kl, "hint": hint}


def batches(
    data: Dataset, size: int, seed: int, progress: Callable[[], float]
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """`size` whole pictures, or as many pixels in windows that start on the latents' grid.

    Images and masks as AutoencoderLoss wants them, and the weight of the pull.
    """
    rng = np.random.default_rng(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    while True:
        cells = (CROP if progress() < CROP_SHARE else 128) // 8  # a window's side
        rows = rng.integers(len(data), size=size * (16 // cells) ** 2)
        corners = rng.integers(16 - cells + 1, size=(len(rows), 2))

        images = []
        masks = []
        for row, (y, x) in zip(rows, corners, strict=True):
            images.append(data.images[row, 8 * y : 8 * (y + cells), 8 * x : 8 * (x + cells)])
            masks.append(data.masks[row, y : y + cells, x : x + cells])

        pixels = to_tensor(np.stack(images)).to(device)
        shares = torch.from_numpy(np.stack(masks)).float().div(255)[:, None].to(device)
        yield pixels, shares, HINT_WEIGHT * max(0.0, 1 - progress() / HINT_SHARE)


@torch.no_grad()
def save(vae: AutoencoderKL, data: Dataset, folder: Path, picture: Path) -> dict[str, float]:
    """Writes fp16 weights, with the scaling factor that gives latents unit spread.

    Writes a sheet of pictures before and after, too; returns figures for the log.
    """
    images = to_tensor(data.images[:256]).to(vae.device)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(32)])

    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    decoded = torch.cat([vae.decode(part).sample for part in latents[:32].split(32)])
    save_sheet(picture, torch.stack([images[:32], decoded], 1).flatten(0, 1), columns=8)

    vae.half().save_pretrained(folder)
    vae.float()
    return quality(vae) | {"scaling_factor": vae.config.scaling_factor}


def psnr(images: Tensor, again: Tensor) -> float:
    """Of pictures in [-1, 1], over all their pixels [dB]."""
    return float(-10 * torch.log10(((again.clamp(-1, 1) - images) / 2).square().mean()))


@torch.no_grad()
def quality(vae: AutoencoderKL, count: int = 400) -> dict[str, float]:
    """PSNR [dB] of drawn dev pictures, of each style, and of photos with two subjects."""
    rng = np.random.default_rng(555)
    even = 1 / len(STYLE_NAMES)
    scenes = [
        random_scene(rng, "dev", photo_share=even, avoid_held_out=False) for _ in range(count)
    ]
    pairs = [
        random_scene(rng, "dev", photo_share=1.0, avoid_held_out=False, pair_share=1.0)
        for _ in range(count // 8)
    ]

    images = to_tensor(np.stack([draw(scene).image for scene in scenes + pairs])).to(vae.device)
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in images.split(32)]
    again = torch.cat(parts)

    styles = np.array([scene.style for scene in scenes] + ["pairs"] * len(pairs))
    figures = {"psnr": psnr(images[:count], again[:count])}
    for style in (*STYLE_NAMES, "pairs"):
        rows = torch.from_numpy(np.flatnonzero(styles == style))
        figures[f"psnr_{style.replace(' ', '_')}"] = psnr(images[rows], again[rows])
    return {name: round(value, 2) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, steps=40000, minutes=25, rate=2e-3, batch=4)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    folder = args.assets / "base" / "vae"
    vae = AutoencoderKL(**CONFIG)
    if args.resume:
        vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)

    data = load(args.data)
    plan = budget(args)
    started = time.monotonic()
    module = AutoencoderLoss(vae).to(memory_format=torch.channels_last)
    stream = batches(data, args.batch, args.seed, lambda: progress_of(0, started, plan))
    runs = args.data.parent
    fit(
        module,
        stream,
        plan,
        lambda m: save(m.vae, data, folder, runs / "vae.png"),
        runs / "vae.jsonl",
    )


if __name__ == "__main__":
    main()
