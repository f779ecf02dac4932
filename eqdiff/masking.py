"""The mask-guided diffusion process (MGDP, paper Sec. 4.2, Eq. 6-7).

Axes: B batch, C latent channels, H, W pixels, h, w latent cells. Masks are {0, 1} with 1 on the subject; the release's
unbinarised grey edges are in [0, 1] and pass through as weights.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def to_latent_mask(mask: Tensor, size: tuple[int, int], *, method: Literal["area", "nearest"] = "area") -> Tensor:
    """The mask (B, 1, H, W) at latent size (h, w): (B, 1, h, w).

    area: 1 where the subject fills at least half a cell; a subject too thin for that keeps the cells it fills most, so
    that only an empty mask comes out empty. nearest: the release's, one pixel a cell, greys kept.
    """
    if method == "nearest":
        return F.interpolate(mask, size, mode="nearest")
    share = F.adaptive_avg_pool2d(mask.float(), size)
    most = share.amax((2, 3), keepdim=True)  # (B, 1, 1, 1)
    thin = (most > 0) & (most < 0.5)
    return torch.where(thin, share == most, share >= 0.5).to(mask.dtype)


def dilation_radius(fraction: float, side: int) -> int:
    """The radius in cells of a dilation by `fraction` of the image side, for a mask of `side` cells."""
    return round(fraction * side)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """The mask (B, 1, h, w) grown by `radius` cells in a square: a dot becomes 2 radius + 1 cells wide.

    Not in the paper (radius 0 there). The release max-pools 5x5 five times at 64x64, which is radius 10: a fraction of
    10/64 of the side, 80 pixels of 512.
    """
    if radius < 0:
        raise ValueError(f"dilation radius is {radius} cells: use 0 or more")
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)


def coverage(mask: Tensor) -> Tensor:
    """Share of each mask (B, 1, h, w) that is subject: (B,) in [0, 1]."""
    return mask.float().mean((1, 2, 3))


def add_noise(z0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar) z0 + sqrt(1 - alpha_bar) noise, the forward process, with alpha_bar (B,) in [0, 1]."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return (alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * noise).to(z0.dtype)


def velocity(z0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) z0, which SD 2.x's larger models predict instead of the noise
    (Salimans and Ho 2022); alpha_bar (B,) in [0, 1]."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return (alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z0).to(z0.dtype)


# Eq. 6: z'_t = M z_t + (1 - M) z0.
def masked_noising(z0: Tensor, noise: Tensor, alpha_bar: Tensor, mask: Tensor) -> Tensor:
    """z'_t (B, C, h, w): noised inside the mask (B, 1, h, w), z0 bit for bit outside. A mask of ones: add_noise."""
    z_t = add_noise(z0, noise, alpha_bar)
    return torch.where(mask > 0, torch.lerp(z0, z_t, mask.to(z0.dtype)), z0)


# Eq. 7: L_diff = E[ || M (eps - eps_theta(z'_t, t, tau(y))) ||^2 ] over the masked area.
def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean square error (B,) of (B, C, h, w) inside the mask (B, 1, h, w), in fp32; what lies outside never matters.

    The sum over the mask is divided by C and by the mask's area; the release leaves C out, which makes its loss 4 times
    ours. An empty mask gives NaN: `to_latent_mask` makes none of a mask that is not empty.
    """
    error = torch.where(mask > 0, prediction.float() - target.float(), 0.0)  # (B, C, h, w)
    return (mask * error**2).sum((1, 2, 3)) / (prediction.shape[1] * mask.float().sum((1, 2, 3)))
