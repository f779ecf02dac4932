"""Frequency bands of an image: the paper's Sec. 3 (Eq. 3-4), and the choice of one (Eq. 5).

Departures from the paper: it gives no cutoff, and 16 cycles per image is ours. Nothing is clipped.
What the release does otherwise is a field of `Filter`.

Axes: B batch, C channels, h, w pixels. Images are in [-1, 1]. A cutoff is in cycles per image,
which is the same as a distance in FFT bins: 16 means the same detail at every resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from torch import Generator, Tensor

Shape = Literal["circle", "square"]


class Band(IntEnum):
    """What a training image shows: I_LF, I_HF or the image I_ori itself, in the order of Eq. 5."""

    LOW = 0
    HIGH = 1
    FULL = 2


ALWAYS_FULL = tuple(float(band is Band.FULL) for band in Band)  # the probabilities without FDTE


@dataclass(frozen=True)
class Filter:
    """The two filters of Eq. 4. With one cutoff for both, low + high is the image.

    The release differs in every field: Filter("square", 50, 5, False, True). Its bands overlap, and
    its absolute value turns dark into bright.
    """

    shape: Shape = "circle"
    low_cutoff: float = 16.0  # cycles per image: the low pass keeps what is at or below
    high_cutoff: float = 16.0  # cycles per image: the high pass removes what is at or below
    colour: bool = True  # False: filter the channel mean and repeat it
    rectify: bool = False  # False: real part of the inverse transform; True: its absolute value

    def __post_init__(self) -> None:
        if self.shape not in ("circle", "square"):
            raise ValueError(f"filter shape is {self.shape!r}: use 'circle' or 'square'")
        if not (self.low_cutoff >= 0 and self.high_cutoff >= 0):
            raise ValueError(
                f"filter cutoffs are {self.low_cutoff} and {self.high_cutoff} cycles/image: "
                "use 0 or more"
            )


# Eq. 4: L(u, v) = 1 where ||(u, v) - (u0, v0)|| <= f_c, H = 1 - L.
def pass_mask(
    height: int,
    width: int,
    cutoff: float,
    shape: Shape,
    device: torch.device | str | None = None,
) -> Tensor:
    """L as bool (h, w), True on the low frequencies.

    It is in fftshift layout: frequency zero is at (h // 2, w // 2). square: the release's slice
    [centre - cutoff, centre + cutoff) on either axis, which leaves out +cutoff.
    """
    v = torch.arange(height, device=device)[:, None] - height // 2  # (h, 1)
    u = torch.arange(width, device=device)[None, :] - width // 2  # (1, w)

    if shape == "circle":
        return u**2 + v**2 <= cutoff**2
    return (-cutoff <= v) & (v < cutoff) & (-cutoff <= u) & (u < cutoff)


# Eq. 3: F^-1(keep * F(I)), the image of the frequencies that are kept.
def _filtered(image: Tensor, keep: Tensor, filter: Filter) -> Tensor:
    """image (..., C, h, w) in [-1, 1], keep (h, w) bool -> (..., C, h, w), not clipped."""
    channels = image if filter.colour else image.mean(-3, keepdim=True)
    wide = torch.promote_types(image.dtype, torch.float32)  # there is no bf16 FFT

    spectrum = torch.fft.fft2(channels.to(wide)) * torch.fft.ifftshift(keep)
    band = torch.fft.ifft2(spectrum)
    band = band.abs() if filter.rectify else band.real

    return band.to(image.dtype).expand(image.shape).contiguous()


def low_pass(image: Tensor, filter: Filter) -> Tensor:
    """I_LF of images (..., C, h, w) in [-1, 1], same shape and dtype. A constant passes whole."""
    keep = pass_mask(*image.shape[-2:], filter.low_cutoff, filter.shape, image.device)
    return _filtered(image, keep, filter)


def high_pass(image: Tensor, filter: Filter) -> Tensor:
    """I_HF of images (..., C, h, w) in [-1, 1], same shape and dtype; around 0 unless rectified."""
    keep = ~pass_mask(*image.shape[-2:], filter.high_cutoff, filter.shape, image.device)
    return _filtered(image, keep, filter)


PASSES = {Band.LOW: low_pass, Band.HIGH: high_pass}  # a band that is not here is the image itself


# Eq. 5, first line: I_g, given the bands that were drawn.
def apply_band(images: Tensor, bands: Tensor, filter: Filter) -> Tensor:
    """Image i of (B, C, h, w) filtered to bands[i], a Band; FULL rows come back bit for bit."""
    filtered = images.clone()
    for band, band_pass in PASSES.items():
        rows = (bands == band).to(images.device)
        if rows.any():
            filtered[rows] = band_pass(images[rows], filter)
    return filtered


# Eq. 5: b ~ Cat(p_l, p_h, p_o), one draw an image.
def draw_bands(probs: Sequence[float], n: int, generator: Generator) -> Tensor:
    """n Bands as int64 (n,), drawn with one probability for each Band on the generator's device."""
    if len(probs) != len(Band) or min(probs) < 0 or abs(sum(probs) - 1) > 1e-6:
        names = ", ".join(band.name.lower() for band in Band)
        raise ValueError(
            f"band probabilities ({names}) are {probs}: give one for each, none negative, "
            "that sum to 1"
        )

    weights = torch.tensor(probs, dtype=torch.float64, device=generator.device)
    return torch.multinomial(weights, n, replacement=True, generator=generator)
