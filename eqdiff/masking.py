"""The mask-guided diffusion process: MGDP, the paper's Sec. 4.2 (Eq. 6-7); masks on coarser grids.

Departures from the paper: the sum of Eq. 7 is divided by the mask's area and the channels, so that
the loss does not depend on the subject's size. Two things of the release are off by default: it
dilates the mask, and it keeps grey edges. Three things are ours and off by default: a dilation that
grows with the noise, noise everywhere in some samples, and a loss outside the mask where noise is.

Axes: B batch, C latent channels, H, W pixels, h, w latent cells. Masks are {0, 1} with 1 on the
subject. The grey edges of the release's masks are in [0, 1] and pass through as weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_mask(mask: Tensor, size: tuple[int, int], *, binary: bool = True) -> Tensor:
    """The mask (B, 1, H, W) on a coarser grid: (B, 1, h, w).

    binary: 1 where the subject fills at least half a cell. A subject too thin for that keeps the
    cells that it fills most, so that only an empty mask becomes empty. Not binary, as in the
    release: one pixel stands for a cell, and greys are kept.
    """
    if not binary:
        return F.interpolate(mask, size, mode="nearest")

    share = F.adaptive_avg_pool2d(mask.float(), size)  # (B, 1, h, w), how much of a cell is subject
    threshold = share.amax((2, 3), keepdim=True).clamp(max=0.5)
    return ((share >= threshold) & (share > 0)).to(mask.dtype)


def level_size(cells: Sequence[int], tokens: int) -> tuple[int, int]:
    """The sides of a UNet's level of `tokens` tokens, on latents of `cells` (h, w).

    Raises ValueError if no level has so many.
    """
    height, width = cells
    while height * width > tokens:  # as the UNet halves
        height = (height + 1) // 2
        width = (width + 1) // 2
    if height * width != tokens:
        raise ValueError(f"{tokens} tokens are no level of a UNet on latents of {tuple(cells)}")
    return height, width


def at_level(mask: Tensor, tokens: int, *, binary: bool) -> Tensor:
    """The latent mask (B, 1, h, w) at the UNet's level of `tokens` tokens: (B, tokens) fp32.

    Raises ValueError if no level of a UNet on such latents has so many.
    """
    level = resize_mask(mask.float(), level_size(mask.shape[-2:], tokens), binary=binary)
    return level.flatten(1)  # (B, 1, height, width) -> (B, tokens)


def dilation_radius(fraction: float, side: int) -> int:
    """The radius [cells] of a dilation by `fraction` of the side, for a mask of `side` cells."""
    return round(fraction * side)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """The mask (B, 1, h, w) grown by `radius` cells: a dot becomes a square, 2 radius + 1 wide.

    Not in the paper (radius 0 there). The release max-pools 5x5 five times at 64x64, which is
    radius 10: a fraction of 10/64 of the side, 80 pixels of 512.
    """
    if radius < 0:
        raise ValueError(f"dilation radius is {radius} cells: use 0 or more")
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


# Ours, not the paper's: a subject's edge is known where little noise is, and lost where much is.
def dilate_by_time(mask: Tensor, fraction: float, time: Tensor) -> Tensor:
    """Masks (B,1,h,w), each dilated by `fraction` of the side times its time (B,) in [0, 1].

    time: 0 without noise, 1 at the end of the noise schedule.
    """
    radii = [dilation_radius(fraction * share, mask.shape[-1]) for share in time.tolist()]
    grown = [dilate(one[None], radius) for one, radius in zip(mask, radii, strict=True)]
    return torch.cat(grown)


# Ours, not the paper's: Eq. 6 has noise inside the mask alone, in every sample.
def noise_region(mask: Tensor, everywhere: Tensor) -> Tensor:
    """Where the noise of Eq. 6 is (B,1,h,w): in the mask, or in the whole latent where a sample
    of `everywhere` (B,) bool says so.
    """
    return torch.where(everywhere.view(-1, 1, 1, 1), torch.ones_like(mask), mask)


# Ours, not the paper's: Eq. 7 weighs what is outside the mask with 0.
def loss_weights(mask: Tensor, noised: Tensor, background: float) -> Tensor:
    """What each cell counts in Eq. 7 (B,1,h,w): 1 in the mask, `background` in [0, 1] outside it.

    noised: (B,1,h,w) as of `noise_region`. Where no noise is none can be predicted: 0 there. So 0
    is the masked loss, and 1 with noise everywhere is the loss without a mask.
    """
    return torch.lerp(mask, noised, background)


def coverage(mask: Tensor) -> Tensor:
    """Share of each mask (B, 1, h, w) that is subject: (B,) in [0, 1]."""
    return mask.float().mean((1, 2, 3))


# The noisy latent of Eq. 1: z_t = sqrt(alpha_bar) z0 + sqrt(1 - alpha_bar) eps.
def add_noise(z0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t (B, C, h, w) from z0 and noise of that shape, with alpha_bar (B,) in [0, 1]."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return (alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * noise).to(z0.dtype)


def velocity(z0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) z0 (B, C, h, w), alpha_bar (B,) in [0, 1].

    SD 2.x's larger models predict it instead of the noise (Salimans and Ho 2022). Not in the paper.
    """
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return (alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z0).to(z0.dtype)


# Eq. 6: z'_t = M z_t + (1 - M) z0.
def masked_noising(z0: Tensor, noise: Tensor, alpha_bar: Tensor, mask: Tensor) -> Tensor:
    """z'_t (B, C, h, w): noised inside the mask (B, 1, h, w), z0 bit for bit outside.

    A mask of ones gives `add_noise`.
    """
    z_t = add_noise(z0, noise, alpha_bar)
    return torch.where(mask > 0, torch.lerp(z0, z_t, mask.to(z0.dtype)), z0)


# Eq. 7: L_diff = E[ M || eps - eps_theta(z'_t, t, tau(y)) ||^2 ] over the masked area.
def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean square error (B,) of (B, C, h, w) inside the mask (B, 1, h, w), in fp32.

    What lies outside the mask never matters. The release does not divide by C, which makes its loss
    4 times ours. An empty mask gives NaN; `resize_mask` returns an empty one only for an empty one.
    """
    error = torch.where(mask > 0, prediction.float() - target.float(), 0.0)  # (B, C, h, w)
    total = (mask * error**2).sum((1, 2, 3))
    area = mask.float().sum((1, 2, 3))
    return total / (prediction.shape[1] * area)
