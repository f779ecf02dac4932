"""The ten contexts: each function draws a background, float32 (128, 128, 3) in 0..1.

The generator varies it a little. Shapes are few and large: a background must survive eight styles
and a latent grid of 16 x 16.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
_Y, _X = (axis.astype(np.float32) / SIZE for axis in np.mgrid[0:SIZE, 0:SIZE])

Colour = tuple[int, int, int]


def _mix(first: Colour, second: Colour, share: np.ndarray) -> np.ndarray:
    """Blend of two 0..255 colours by a share (H, W) in 0..1 -> (H, W, 3) in 0..1."""
    a = np.float32(first) / 255
    b = np.float32(second) / 255
    return a + (b - a) * np.clip(np.asarray(share, np.float32), 0, 1)[..., None]


def _paint(
    image: np.ndarray, where: np.ndarray, first: Colour, second: Colour, share: np.ndarray
) -> np.ndarray:
    return np.where(where[..., None], _mix(first, second, share), image)


def _dot(
    image: np.ndarray, places: list[tuple[float, float]], radius: float, colour: Colour
) -> np.ndarray:
    """The image with discs of a 0..255 colour; places (x, y) and radius in shares of the frame."""
    side = 4 * SIZE  # drawn large and reduced: smooth edges
    stencil = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(stencil)
    for x, y in places:
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse([edge * side for edge in box], fill=255)

    cover = np.asarray(stencil.reduce(4), np.float32)[..., None] / 255
    return image + (np.float32(colour) / 255 - image) * cover


def beach(rng: np.random.Generator) -> np.ndarray:
    horizon = rng.uniform(0.26, 0.36)
    shore = horizon + 0.22 + 0.025 * np.sin(2 * np.pi * (_X * 1.5 + rng.random()))

    image = _mix((96, 184, 248), (200, 232, 252), _Y / horizon)
    image = _paint(image, _Y > horizon, (10, 104, 180), (40, 176, 206), (_Y - horizon) / 0.22)
    image = _paint(image, _Y > shore - 0.03, (255, 255, 255), (236, 248, 250), _Y)
    image = _paint(image, _Y > shore, (240, 212, 140), (250, 226, 166), (_Y - shore) * 2)

    return _dot(image, [(rng.uniform(0.1, 0.9), 0.1)], 0.08, (255, 236, 110))


def jungle(rng: np.random.Generator) -> np.ndarray:
    image = _mix((6, 40, 22), (20, 76, 34), _Y)
    picture = Image.fromarray((image * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    greens = ((18, 104, 40), (10, 84, 44), (44, 132, 40), (26, 116, 60))
    places = [(x, y) for y in (-6, 26, 58, 90, 122) for x in (-4, 28, 60, 92, 124)]

    for number, (x, y) in enumerate(places):
        angle = rng.uniform(0.4, 1.2) * (1 if number % 2 else -1) + np.pi / 2
        along = np.array((np.cos(angle), np.sin(angle)))
        across = np.array((-np.sin(angle), np.cos(angle)))
        base = np.array((x + 16 * (number // 5 % 2), y))

        leaf = (base - 26 * along, base + 9 * across, base + 26 * along, base - 9 * across)
        rib = (base - 24 * along, base + 24 * along)
        draw.polygon([tuple(map(float, p)) for p in leaf], fill=greens[number % 4])
        draw.line([tuple(map(float, p)) for p in rib], fill=(110, 180, 70), width=2)

    return np.asarray(picture, np.float32) / 255


def snow(rng: np.random.Generator) -> np.ndarray:
    phase = rng.random()
    hill = 0.42 + 0.08 * np.sin(2 * np.pi * (_X + phase))

    image = _mix((150, 180, 214), (206, 222, 240), _Y / 0.45)
    image = _paint(image, _Y > hill, (250, 252, 255), (222, 232, 246), (_Y - hill) * 1.6)

    from_trunk = np.abs((4 * (_X - phase)) % 1 - 0.5) / 4
    trees = (from_trunk < (_Y - 0.14) * 0.28) & (_Y < 0.44)
    image = _paint(image, trees, (250, 252, 255), (40, 100, 90), (_Y - 0.14) / 0.08)

    flakes = [((0.13 + 0.29 * i + phase) % 1, (0.07 + 0.37 * i) % 1) for i in range(14)]
    return _dot(image, flakes, 0.022, (255, 255, 255))


def wooden_floor(rng: np.random.Generator) -> np.ndarray:
    rows = _Y * 6 + rng.random()
    plank = np.floor(rows)
    seam = (_X * 1.6 + 0.37 * plank * 2 + rng.random()) % 1
    grain = 0.5 + 0.5 * np.sin(rows * 14 + 3 * np.sin(_X * 5 + plank * 2))

    image = _mix((176, 112, 56), (206, 142, 82), 0.35 * grain + 0.65 * (plank * 0.37 % 1))
    return _paint(image, (rows % 1 < 0.1) | (seam < 0.025), (92, 54, 26), (92, 54, 26), _X)


def pink_fabric(rng: np.random.Generator) -> np.ndarray:
    wave = np.sin(
        2 * np.pi * (1.6 * _X + 1.1 * _Y + rng.random())
        + 1.6 * np.sin(2 * np.pi * (_Y - 0.5 * _X) + 1)
    )

    return _mix((224, 84, 150), (255, 176, 212), 0.5 + 0.5 * wave)


def city(rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray((_mix((150, 186, 224), (232, 222, 206), _Y) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    shift = int(rng.integers(0, 22))
    greys = ((84, 90, 106), (112, 110, 122), (66, 74, 92), (98, 104, 112))

    for number, x in enumerate(range(-shift, SIZE, 22)):
        top = int(rng.integers(2, 38))
        draw.rectangle([x, top, x + 20, 104], fill=greys[(number + shift) % 4])
        for row in range(top + 6, 100, 12):
            for left in (x + 4, x + 12):
                draw.rectangle([left, row, left + 4, row + 5], fill=(255, 226, 120))

    draw.rectangle([0, 104, SIZE, SIZE], fill=(70, 70, 76))
    for x in range(-shift, SIZE, 32):
        draw.rectangle([x, 115, x + 16, 118], fill=(244, 240, 220))

    return np.asarray(picture, np.float32) / 255


def galaxy(rng: np.random.Generator) -> np.ndarray:
    phase = rng.random()
    arm = np.sin(2 * np.pi * (0.8 * _X - 0.9 * _Y + phase) + np.sin(4 * _X + 3))

    image = _mix((10, 8, 40), (112, 36, 150), 0.5 + 0.5 * arm)
    image += _mix((0, 0, 0), (10, 70, 120), 0.5 * np.sin(2 * np.pi * (_X + _Y * 0.7 - phase)))

    stars = [((0.11 + 0.381 * i + phase) % 1, (0.05 + 0.236 * i) % 1) for i in range(24)]
    image = _dot(image, stars[:14], 0.01, (255, 250, 224))
    return _dot(image, stars[14:], 0.022, (255, 250, 224))


def brick_wall(rng: np.random.Generator) -> np.ndarray:
    rows = _Y * 8 + rng.random()
    course = np.floor(rows)
    columns = _X * 4 + 0.5 * (course % 2) + rng.random()

    tone = (course * 0.38 + np.floor(columns) * 0.62) % 1

    joint = (rows % 1 < 0.16) | (columns % 1 < 0.08)
    return _paint(
        _mix((160, 58, 40), (196, 88, 58), tone), joint, (222, 210, 196), (222, 210, 196), _X
    )


def green_grass(rng: np.random.Generator) -> np.ndarray:
    rows = _Y * 7
    blades = (rows + 0.9 * np.abs((_X * 11 + 0.5 * np.floor(rows) + rng.random()) % 1 - 0.5)) % 1
    image = _mix((112, 204, 62), (60, 160, 46), blades)

    phase = rng.random()
    flowers = [((0.09 + 0.382 * i + phase) % 1, (0.06 + 0.29 * i) % 1) for i in range(12)]
    image = _dot(image, flowers, 0.034, (255, 255, 246))
    return _dot(image, flowers, 0.016, (250, 196, 30))


def purple_rug(rng: np.random.Generator) -> np.ndarray:
    edge = np.minimum(np.minimum(_X, 1 - _X), np.minimum(_Y, 1 - _Y)) + 0.02 * rng.random()
    lattice = np.abs((_X * 5 + _Y * 5 + rng.random()) % 1 - 0.5) + np.abs(
        (_X * 5 - _Y * 5) % 1 - 0.5
    )

    image = _mix((92, 34, 138), (134, 70, 184), (lattice - 0.2) * 1.6)
    image = _paint(image, (edge > 0.05) & (edge < 0.1), (240, 200, 80), (240, 200, 80), _X)

    fringe = (edge < 0.03) & (((_X + _Y) * 20 % 1) < 0.5)
    return _paint(image, fringe, (240, 226, 196), (240, 226, 196), _X)


CONTEXTS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "on the beach": beach,
    "in the jungle": jungle,
    "in the snow": snow,
    "on a wooden floor": wooden_floor,
    "on pink fabric": pink_fabric,
    "in the city": city,
    "in a galaxy": galaxy,
    "by a brick wall": brick_wall,
    "on green grass": green_grass,
    "on a purple rug": purple_rug,
}
