"""The eight styles: each function maps a picture and its subject mask to a picture.

image: float32 (128, 128, 3) in 0..1; mask: float32 (128, 128) in 0..1; result as image.

Textures are fixed screens, made once, and repeat with the 8-pixel cell of the latent grid. Grain
that changed from picture to picture, or from cell to cell, would only cost a small VAE its
capacity.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128
_CELL = 8  # pixels a latent
_Y, _X = (axis.astype(np.float32) for axis in np.mgrid[0:SIZE, 0:SIZE])

# for each pixel: the index of the pixel that it takes its colour from, and its coverage or relief
Screen = tuple[np.ndarray, np.ndarray]


def _blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of a (H, W, 3) or (H, W) picture in 0..1."""
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _grey(image: np.ndarray) -> np.ndarray:
    return image[..., 0] * 0.3 + image[..., 1] * 0.59 + image[..., 2] * 0.11


def _peak(image: np.ndarray) -> np.ndarray:
    """Largest channel (H, W) of an image (H, W, C); faster than max() on so short an axis."""
    return np.maximum.reduce([image[..., c] for c in range(image.shape[-1])])


def _saturate(image: np.ndarray, gain: float) -> np.ndarray:
    """Colours pushed away from grey by a gain; the result stays in 0..1."""
    grey = _grey(image)[..., None]
    return np.clip(grey + (image - grey) * gain, 0, 1)


def _edges(image: np.ndarray) -> np.ndarray:
    """Strength (H, W) >= 0 of the steepest channel's gradient per pixel."""
    dx = np.zeros_like(image)
    dx[:, 1:-1] = image[:, 2:] - image[:, :-2]
    dy = np.zeros_like(image)
    dy[1:-1] = image[2:] - image[:-2]
    return _peak(np.abs(dx)) + _peak(np.abs(dy))


def _sites(pitch: float, row: float, jitter: float, period: int) -> np.ndarray:
    """Points (N, 2) as (x, y) that cover the frame and a margin.

    Every other row is shifted by half the pitch. The fixed jitter (pixels) repeats every `period`
    pixels.
    """
    side = SIZE + 4 * _CELL
    rows = []
    for i, y in enumerate(np.arange(row / 2, side, row)):
        xs = np.arange(pitch / 4 + pitch / 2 * (i % 2), side, pitch)
        rows.append(np.stack(np.broadcast_arrays(xs, y), -1))
    points = np.concatenate(rows)

    moves = np.random.default_rng(7).uniform(-jitter, jitter, (period, period, 2))
    x, y = (points % period).astype(np.int64).T
    return (points + moves[y, x] - 2 * _CELL).astype(np.float32)


def _nearest(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pixel the nearest point's number and the distances to the two nearest points.

    Each of the three is (H, W).
    """
    far = np.hypot(_X[..., None] - points[:, 0], _Y[..., None] - points[:, 1])
    number = far.argmin(-1)
    first, second = np.partition(far, 1, axis=-1)[..., :2].transpose(2, 0, 1)
    return number, first, second


def _pixel(points: np.ndarray) -> np.ndarray:
    """Flat pixel index of points (..., 2), clipped into the frame."""
    nearest = np.clip(np.round(points), 0, SIZE - 1).astype(np.int64)
    return nearest[..., 1] * SIZE + nearest[..., 0]


@lru_cache(maxsize=1)
def _dots() -> Screen:
    points = _sites(_CELL, _CELL / 2, 0, _CELL)
    number, first, _ = _nearest(points)
    return _pixel(points)[number], np.clip(3.2 - first, 0, 1)


@lru_cache(maxsize=1)
def _tiles() -> Screen:
    number, first, second = _nearest(_sites(_CELL, _CELL, 0.8, 2 * _CELL))
    return number, np.clip((second - first) * 0.8 - 0.4, 0, 1)


@lru_cache(maxsize=1)
def _strokes() -> Screen:
    """Overlapping brush strokes of about 7 x 4 pixels, whose slant turns slowly.

    They repeat every 32 pixels.
    """
    side = 4 * _CELL
    sites = _sites(4, 4, 0.9, side)
    points = sites[((sites >= 0) & (sites < side)).all(-1)]
    angle = 0.7 + 0.5 * (np.sin(points * 2 * np.pi / side) @ np.float32((1, -1)))
    rng = np.random.default_rng(3)
    owner = _stroke_owners(points, angle, rng.permutation(len(points)), side)

    number = np.tile(owner, (SIZE // side, SIZE // side))
    pixels = np.stack([_X, _Y], -1)
    # from the pixel to the stroke's centre, by the shorter way round
    centre = (points[number] - pixels + side / 2) % side - side / 2
    across = centre[..., 0] * np.sin(angle)[number] - centre[..., 1] * np.cos(angle)[number]
    tone = rng.uniform(-0.05, 0.05, len(points))[number]

    # half the way to the centre: flat strokes would tear the emblem apart
    return _pixel(pixels + centre / 2), (1 + tone - 0.06 * across).astype(np.float32)


def _stroke_owners(
    points: np.ndarray, angle: np.ndarray, order: np.ndarray, side: int
) -> np.ndarray:
    """The number of the stroke on top of each pixel of a tile (side, side)."""
    owner = Image.new("I", (side, side), 0)
    pen = ImageDraw.Draw(owner)
    shifts = [(x, y) for x in (-side, 0, side) for y in (-side, 0, side)]

    for width in (8, 4):  # a first coat of wide strokes leaves no gap under the second
        for number in order:
            half = 2.6 * np.array((np.cos(angle[number]), np.sin(angle[number])))
            for shift in shifts:
                centre = points[number] + shift
                ends = np.concatenate([centre - half, centre + half])
                pen.line([float(v) for v in ends], fill=int(number), width=width)

    return np.asarray(owner)


@lru_cache(maxsize=1)
def _paper() -> tuple[np.ndarray, np.ndarray]:
    """Watercolor paper: how much of the wash stays, ragged towards the border, and its tint.

    Both are (H, W, 1).
    """
    border = np.minimum(np.minimum(_X, SIZE - 1 - _X), np.minimum(_Y, SIZE - 1 - _Y))
    ragged = border + 2.5 * np.sin(_X / 5) + 2.5 * np.sin(_Y / 6 + 1) - 4
    pools = 0.08 * np.sin(_X / 9 + 2 * np.sin(_Y / 17)) * np.sin(_Y / 11 + 1.5 * np.sin(_X / 13))
    return np.clip(ragged / 5, 0, 1)[..., None], pools[..., None].astype(np.float32)


def photo(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return image


def oil_painting(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    index, relief = _strokes()
    strokes = _saturate(_blur(image, 0.7), 1.35).reshape(-1, 3)[index]
    strokes = np.round(strokes * 6) / 6

    warm = np.float32((1.04, 0.98, 0.86))
    return np.clip(strokes * relief[..., None] * warm + np.float32((0.02, 0.01, 0)), 0, 1)


def watercolor(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    stays, pools = _paper()
    soft = _blur(image, 1.3)
    wash = 1 - (1 - _saturate(soft, 1.15)) * (0.62 + pools)

    rim = np.clip(_edges(_blur(image, 1.0)) - 0.1, 0, 0.5)[..., None]
    wash = np.clip(wash - 0.35 * rim, 0, 1)
    return 1 - (1 - wash) * stays * np.float32((0.98, 1.0, 1.0))


def pencil_sketch(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    grey = _grey(image)
    lines = np.clip(_edges(_blur(image, 0.7)) * 1.5 - 0.16, 0, 0.85)
    contour = np.clip(_edges(_blur(mask, 0.8)[..., None]) * 1.6, 0, 0.95)

    hatch = ((_X + _Y) % _CELL < 3) * np.clip(0.62 - grey, 0, 0.4)
    hatch = hatch + ((_X - _Y) % _CELL < 3) * np.clip(0.34 - grey, 0, 0.3)

    tint = 1 - (1 - _saturate(image, 1.1)) * (0.2 + 0.16 * mask[..., None])
    ink = np.maximum(np.maximum(lines * (0.55 + 0.3 * mask), contour), hatch)[..., None]
    return tint * (1 - ink) + 0.16 * ink


def pointillism(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    index, cover = _dots()
    outline = np.clip(_edges(_blur(mask, 1.5)[..., None]), 0, 0.6)[
        ..., None
    ]  # parts pink from pink

    dots = (_saturate(_blur(image, 0.8), 1.3) * (1 - outline)).reshape(-1, 3)[index]
    return dots * cover[..., None] + np.float32((0.97, 0.95, 0.88)) * (1 - cover[..., None])


def mosaic(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    number, cover = _tiles()
    piece = 2 * number + (mask > 0.5)  # tiles are cut along the subject's outline

    flat = piece.ravel()
    count = np.maximum(np.bincount(flat), 1)
    mean = np.stack(
        [np.bincount(flat, image[..., c].ravel()) / count for c in range(3)], -1
    ).astype(np.float32)

    tiles = _saturate(mean, 1.3)[piece]
    cover = cover * (1 - np.clip(1.2 * _edges(mask[..., None]), 0, 1))
    return tiles * cover[..., None] + np.float32((0.14, 0.13, 0.15)) * (1 - cover[..., None])


def pixel_art(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    side = SIZE // 4
    blocks = _saturate(image.reshape(side, 4, side, 4, 3).mean((1, 3)), 1.2)
    blocks = np.round(blocks * 4) / 4

    inside = np.pad(mask.reshape(side, 4, side, 4).mean((1, 3)) > 0.5, 1)
    near = inside[:-2, 1:-1] | inside[2:, 1:-1] | inside[1:-1, :-2] | inside[1:-1, 2:]
    blocks[near & ~inside[1:-1, 1:-1]] = (0.05, 0.05, 0.1)

    return blocks.repeat(4, 0).repeat(4, 1)


def neon(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    vivid = _saturate(_blur(image, 0.8), 1.8)
    glow = vivid / np.maximum(_peak(vivid)[..., None], 0.35)

    lines = np.clip(_edges(_blur(image, 0.8)) * 1.3 - 0.12, 0, 1) * (0.5 + 0.5 * mask)
    lines = np.maximum(lines, np.clip(_edges(_blur(mask, 1.2)[..., None]) * 1.4, 0, 1))

    lit = glow * lines[..., None]
    fill = vivid * (0.28 + 0.24 * mask[..., None])
    return np.clip(np.float32((0.03, 0.01, 0.08)) + fill + lit + 0.9 * _blur(lit, 3), 0, 1)


STYLES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "photo": photo,
    "oil painting": oil_painting,
    "watercolor": watercolor,
    "pencil sketch": pencil_sketch,
    "pointillism": pointillism,
    "mosaic": mosaic,
    "pixel art": pixel_art,
    "neon": neon,
}
