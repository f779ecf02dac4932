"""The ten subject classes, each a function that draws its parts on a canvas; their sprites.

A function gets the instance's shape bucket and three proportions in 0..1.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from toybox.canvas import SIZE, Canvas
from toybox.instances import Instance

REACH = 120  # the longer side of the subject in its sprite [pixels]


def mug(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    top = 22 - 16 * p[0]
    inset = (0, 9, 0)[shape]
    c.ellipse("second", 46, 34, 84 + 10 * p[1], 76, width=9)

    if shape == 2:
        c.box("main", 8, top, 68, 92, 22)
        c.box("main", 8, top, 68, 60)
    else:
        c.polygon("main", (8, top), (68, top), (68 - inset, 92), (8 + inset, 92))

    c.box("second", 6, top - 3, 70, top + 6, 4)
    c.emblem(38, (top + 102) / 2, 36)


def teapot(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    x0, x1, y0 = ((22, 80, 34), (18, 84, 42), (27, 75, 24))[shape]
    c.ellipse("second", 60, 40, 92 + 5 * p[0], 78, width=8)
    rise = 40 - 12 * p[1]
    c.polygon("second", (34, 52), (10, rise - 4), (2, rise + 4), (30, 80))

    c.ellipse("second", 44, y0 - 16 - 4 * p[2], 58, y0 - 2)
    c.ellipse("main", x0, y0, x1, 92)
    c.box("second", 35, y0 - 5, 67, y0 + 5, 4)
    c.box("second", 36, 88, 66, 94, 3)

    c.emblem(51, (y0 + 96) / 2, 32)


def car(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    top = 26 - 8 * p[0]
    left, right, slope = ((24, 76, 12), (8, 78, 8), (40, 84, 14))[shape]
    c.polygon("second", (left, 46), (left + slope, top), (right - slope, top), (right, 46))
    c.polygon(
        "glass",
        (left + 6, 44),
        (left + slope + 2, top + 5),
        (right - slope - 2, top + 5),
        (right - 6, 44),
    )
    c.box("second", (left + right) / 2 - 3, top + 3, (left + right) / 2 + 3, 46)

    c.box("main", 2, 42, 98, 76, 10)
    c.box("flame", 90, 50, 98, 58, 3)

    radius = 12 + 3 * p[1]
    for x in (22 + 3 * p[2], 78 - 3 * p[2]):
        c.ellipse("dark", x - radius, 76 - radius, x + radius, 76 + radius)
        c.ellipse("light", x - 6, 70, x + 6, 82)

    c.emblem(50, 59, 30)


def boat(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    c.box("dark", 45, 2, 49, 74)

    if shape == 0:
        c.polygon("main", (50, 4), (50, 66), (94 - 8 * p[0], 66))
        c.polygon("second", (44, 14), (44, 66), (14 + 10 * p[1], 66))
    elif shape == 1:
        c.polygon("main", (18, 10), (80, 10), (88 - 4 * p[0], 62), (10 + 4 * p[1], 62))
    else:
        c.polygon("main", (46, 4), (14 - 6 * p[0], 66), (88 - 6 * p[1], 66))

    c.polygon("second", (2, 70), (98, 70), (82, 92 + 5 * p[2]), (20, 92 + 5 * p[2]))
    c.box("light", 0, 68, 100, 75, 3)
    c.emblem((64, 48, 47)[shape], (50, 37, 48)[shape], (28, 32, 30)[shape])


def fish(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    lift = 8 * p[0]

    if shape == 0:
        c.polygon("second", (64, 52), (98, 22 + lift), (90, 52), (98, 82 - lift))
    elif shape == 1:
        c.ellipse("second", 68, 30 + lift / 2, 100, 74 - lift / 2)
    else:
        c.polygon("second", (60, 52), (96, 26 + lift), (96, 78 - lift))

    c.polygon("second", (26, 36), (44 + 10 * p[1], 8), (66, 36))
    c.polygon("second", (38, 70), (58, 94), (62, 68))
    c.ellipse("main", 2, 26 - 4 * p[2], 78, 78 + 4 * p[2])

    c.eye(18, 45, 7)
    c.polygon("dark", (3, 60), (15, 62), (5, 65))
    c.emblem(46, 52, 32)


def cat(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    tip = (2, 12, 4)[shape] + 6 * p[0]
    lean = (12, 8, 24)[shape]

    for sign in (-1, 1):
        c.polygon(
            "second", (50 + sign * 44, 56), (50 + sign * (52 - lean), tip), (50 + sign * 8, 32)
        )

    c.ellipse("main", 4 - 2 * p[1], 20, 96 + 2 * p[1], 96)
    for x in (27, 73):
        c.ellipse("light", x - 10, 48, x + 10, 68)
        c.ellipse("dark", x - 4 - 2 * p[2], 49, x + 4 + 2 * p[2], 67)

    c.ellipse("light", 34, 66, 66, 90)
    c.polygon("dark", (43, 68), (57, 68), (50, 77))
    c.box("dark", 49, 76, 51, 83)
    for side in ((4, 30), (70, 96)):
        for y in (73, 81):
            c.box("dark", side[0], y, side[1], y + 2)

    c.emblem(50, 39, 30)


def robot(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    c.box("dark", 48, 0, 52, 12)
    c.ellipse("third", 45, 0, 55, 9)

    side = 24 - 6 * p[0]
    if shape == 2:
        c.polygon("second", (side + 8, 9), (92 - side, 9), (100 - side, 40), (side, 40))
    else:
        c.box("second", side, 9, 100 - side, 40, (2, 15)[shape])

    for x in (38, 62):
        c.eye(x, 22, 7)
    c.box("dark", 38, 32, 62, 36)

    for x in (6, 82):
        c.box("second", x, 46, x + 12, 74 + 6 * p[1], 6)
    for x in (30, 56):
        c.box("second", x, 82, x + 14, 99, 2)

    c.box("main", 20, 42, 80, 86, 4 + 6 * p[2])
    c.emblem(50, 64, 34)


def house(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    eaves = 52 - 4 * p[0]
    top = 6 - 4 * p[1]
    if shape == 1:
        c.box("dark", 70, 10, 82, 44)

    flat = (0, 0, 24)[shape]
    c.box("main", 10, eaves - 2, 90, 97)
    c.polygon("second", (0, eaves), (50 - flat, top), (50 + flat, top), (100, eaves))

    c.box("dark", 41, 68, 59, 97)
    for x in (16, 66):
        c.box("light", x - 1, 61, x + 19, 81)
        c.box("glass", x + 1, 63, x + 17, 79)

    c.emblem(50, (36, 36, 29)[shape], 30)


def bird(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    for x in (44, 56):
        c.box("flame", x, 84, x + 4, 99)
        c.box("flame", x - 6, 95, x + 4, 99)

    c.polygon("second", (68, 62), (99, (34, 56, 74)[shape]), (94, (58, 78, 92)[shape]), (64, 82))
    if shape == 1:
        c.polygon("second", (28, 12), (36, -1), (40, 7), (50, 0), (48, 16))

    c.polygon("flame", (16, 20), (-1, 29 + 6 * p[0]), (16, 36))
    c.ellipse("main", 20 - 4 * p[1], 32, 86, 88)
    c.ellipse("second", 12, 6, 52, 48)
    c.eye(25, 24, 7)

    c.emblem(54, 62, 34 + 2 * p[2])


def rocket(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    out = (20, 14, 10)[shape] - 5 * p[0]
    c.polygon("flame", (38, 82), (50, 99), (62, 82))

    for sign in (-1, 1):
        c.polygon(
            "second",
            (50 + sign * 20, 54),
            (50 + sign * (50 - out), (88, 92, 74)[shape]),
            (50 + sign * 18, 84),
        )

    width = 20 + 3 * p[1]
    tip = 2 + 4 * p[2]
    c.box("main", 50 - width, 30, 50 + width, 85, 4)
    if shape == 1:
        c.ellipse("second", 50 - width, tip, 50 + width, 58)
        c.box("main", 50 - width, 32, 50 + width, 60)
    else:
        c.polygon("second", (50 - width, 32), (50, tip), (50 + width, 32))

    c.ellipse("light", 42, 34, 58, 50)
    c.ellipse("glass", 44, 36, 56, 48)
    c.emblem(50, 67, 31)


CLASSES: dict[str, Callable[[Canvas, int, tuple[float, float, float]], None]] = {
    f.__name__: f for f in (mug, teapot, car, boat, fish, cat, robot, house, bird, rocket)
}


@lru_cache(maxsize=20000)
def sprite(instance: Instance) -> np.ndarray:
    """The instance drawn upright and centred: read-only RGBA, uint8 (SIZE, SIZE, 4)."""
    canvas = Canvas(instance)
    CLASSES[instance.class_name](canvas, instance.shape, instance.proportions)
    subject = canvas.image.crop(canvas.image.getbbox())

    scale = REACH / max(subject.size)
    size = [max(1, round(side * scale)) for side in subject.size]
    subject = subject.resize(size, Image.Resampling.BOX)
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    image.paste(subject, ((SIZE - subject.width) // 2, (SIZE - subject.height) // 2))

    pixels = np.array(image)
    pixels[..., :3] = np.clip(pixels[..., :3] * _light(image)[..., None], 0, 255)
    pixels.setflags(write=False)
    return pixels


def _light(image: Image.Image) -> np.ndarray:
    """The brightness (SIZE, SIZE) of a sprite's pixels: light from the upper left, a dark rim.

    The rim parts the subject from a background of its own colour.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    light = 1.12 - 0.3 * (0.4 * x + 0.6 * y)
    core = image.getchannel("A").filter(ImageFilter.MinFilter(5)).filter(ImageFilter.BoxBlur(1))
    return light * (0.45 + 0.55 * np.asarray(core) / 255)
