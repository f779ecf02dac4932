"""Measures of identity beyond a class token: the subject's colours, and its parts one by one.

Colour distance is CIEDE2000 (Sharma, Wu and Dalal 2005) between main colours, which k-means finds
in CIELAB. Masked max-cosine looks for each patch of the subject in the reference: its best match
among the patches of a picture.

Axes: N pictures, P pixels, K colours, L patches, D width of the features.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WHITE = (0.95047, 1.0, 1.08883)  # D65, the white of sRGB
TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
COLOURS = 6  # clusters of a region: main, second and emblem's colour, light and dark parts, a spare
ROUNDS = 12  # of k-means
LEAST_SHARE = 0.12  # clusters of a smaller share are details, edges and shade


def to_lab(pixels: Tensor) -> Tensor:
    """sRGB (..., 3) in 0..1 -> CIELAB (..., 3): L in 0..100, a and b about -128..127."""
    curved = ((pixels.clamp(min=0) + 0.055) / 1.055) ** 2.4
    linear = torch.where(pixels <= 0.04045, pixels / 12.92, curved)

    to_xyz = torch.tensor(TO_XYZ, dtype=pixels.dtype)
    white = torch.tensor(WHITE, dtype=pixels.dtype)
    xyz = linear @ to_xyz.T / white

    cube_root = xyz.clamp(min=0) ** (1 / 3)
    root = torch.where(xyz > 216 / 24389, cube_root, (24389 / 27 * xyz + 16) / 116)
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIELAB (..., 3) x 2 -> the colour difference dE00 (...).

    1 is just noticeable, 100 is black against white.
    """
    lightness_1, a_1, b_1 = first.unbind(-1)
    lightness_2, a_2, b_2 = second.unbind(-1)
    mean_chroma = (torch.hypot(a_1, b_1) + torch.hypot(a_2, b_2)) / 2
    stretch = 1.5 - 0.5 * (mean_chroma**7 / (mean_chroma**7 + 25**7)).sqrt()
    a_1 = a_1 * stretch
    a_2 = a_2 * stretch

    chroma_1 = torch.hypot(a_1, b_1)
    chroma_2 = torch.hypot(a_2, b_2)
    hue_1 = _hue(a_1, b_1)
    hue_2 = _hue(a_2, b_2)
    grey = chroma_1 * chroma_2 == 0

    turn = (hue_2 - hue_1 + 180) % 360 - 180
    turn = torch.where(grey, 0.0, torch.where(turn == -180, 180.0, turn))
    lightness = lightness_2 - lightness_1
    chroma = chroma_2 - chroma_1
    hue = 2 * (chroma_1 * chroma_2).sqrt() * torch.sin((turn / 2).deg2rad())

    mean_l = (lightness_1 + lightness_2) / 2
    mean_c = (chroma_1 + chroma_2) / 2
    mean_h = _mean_hue(hue_1, hue_2, grey)
    s_l, s_c, s_h = _weights(mean_l, mean_c, mean_h)

    part_l = lightness / s_l
    part_c = chroma / s_c
    part_h = hue / s_h
    squares = sum(part**2 for part in (part_l, part_c, part_h))
    return (squares + _rotation(mean_c, mean_h) * part_c * part_h).clamp(min=0).sqrt()


def _hue(a: Tensor, b: Tensor) -> Tensor:
    """The angle of a colour [degrees, 0 to 360]."""
    return torch.atan2(b, a).rad2deg() % 360


def _mean_hue(hue_1: Tensor, hue_2: Tensor, grey: Tensor) -> Tensor:
    """The mean of two angles [degrees] on the shorter arc; their sum where a colour is grey."""
    apart = (hue_1 - hue_2).abs() > 180
    total = hue_1 + hue_2
    around = torch.where(total < 360, total + 360, total - 360)
    mean = torch.where(apart, around, total) / 2
    return torch.where(grey, total, mean)


def _weights(mean_l: Tensor, mean_c: Tensor, mean_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S_L, S_C and S_H of CIEDE2000."""
    terms = ((1, -30), (2, 0), (3, 6), (4, -63))
    cosines = [torch.cos((factor * mean_h + shift).deg2rad()) for factor, shift in terms]
    t = 1 - 0.17 * cosines[0] + 0.24 * cosines[1] + 0.32 * cosines[2] - 0.20 * cosines[3]

    middle = (mean_l - 50) ** 2
    s_l = 1 + 0.015 * middle / (20 + middle).sqrt()
    s_c = 1 + 0.045 * mean_c
    s_h = 1 + 0.015 * mean_c * t
    return s_l, s_c, s_h


def _rotation(mean_c: Tensor, mean_h: Tensor) -> Tensor:
    """R_T of CIEDE2000."""
    angle = 60 * torch.exp(-(((mean_h - 275) / 25) ** 2))
    return -2 * (mean_c**7 / (mean_c**7 + 25**7)).sqrt() * torch.sin(angle.deg2rad())


@dataclass(frozen=True)
class Colours:
    """lab: (K, 3), the colours of a region, most frequent first; share: (K,), of its pixels."""

    lab: Tensor
    share: Tensor


def colours_of(pixels: Tensor, count: int = COLOURS) -> Colours:
    """The main colours of a region, from sRGB pixels (P, 3) in 0..1.

    It is k-means in CIELAB, started from the points that are farthest apart.
    """
    lab = to_lab(pixels.double())
    centres = lab.mean(0, keepdim=True)
    while len(centres) < count:  # deterministic: the point farthest from all centres so far
        farthest = torch.cdist(lab, centres).amin(1).argmax()
        centres = torch.cat([centres, lab[farthest][None]])

    for _ in range(ROUNDS):
        nearest = torch.cdist(lab, centres).argmin(1)
        member = F.one_hot(nearest, count).double()
        size = member.sum(0)
        means = member.T @ lab / size.clamp(min=1)[:, None]
        centres = torch.where(size[:, None] > 0, means, centres)

    order = size.argsort(descending=True)
    return Colours(centres[order], size[order] / len(lab))


def colour_distance(truth: Colours, picture: Colours) -> float:
    """dE00 from each main colour of the subject to the picture's nearest, the mean by share.

    Colours of less than LEAST_SHARE count on neither side.
    """
    main = truth.share >= LEAST_SHARE
    candidates = picture.share >= LEAST_SHARE
    if not bool(candidates.any()):
        candidates = picture.share > 0

    pairs = ciede2000(truth.lab[main][:, None], picture.lab[candidates][None])
    distances = pairs.amin(1)
    weight = truth.share[main]
    return float((distances * weight).sum() / weight.sum())


def max_cosine(reference: Tensor, mask: Tensor, pictures: Tensor) -> Tensor:
    """How well pictures show the subject's parts: for each part its best cosine, their mean (N,).

    reference: patches (L, D). mask: which of them show the subject, bool (L,). pictures: patches
    (N, M, D).
    """
    subject = F.normalize(reference[mask], dim=-1)
    best = (F.normalize(pictures, dim=-1) @ subject.T).amax(1)
    return best.mean(1)
