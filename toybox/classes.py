"""The ten subject classes: each function draws its parts on a canvas of 100 x 100 units (y down)."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from toybox.instances import Instance
from toybox.markings import Point, emblem_mask, pattern_mask

SIZE = 128  # side of a sprite and of a picture in pixels
REACH = 120  # the longer side of the subject in its sprite, in pixels
_SIDE = 4 * SIZE  # parts are drawn at four times the size and reduced once
_UNIT = _SIDE / 100
_DARK, _LIGHT, _GLASS, _FLAME = (30, 30, 38), (248, 246, 240), (176, 220, 240), (255, 160, 30)


class Canvas:
    """Draws parts in units; the fill "main" is the pattern, others are colour names of the instance or fixed."""

    def __init__(self, inst: Instance) -> None:
        self.image = Image.new("RGBA", (_SIDE, _SIDE), (0, 0, 0, 0))
        first, second, third = (np.array(c, np.uint8) for c in inst.rgb)
        self._texture = Image.fromarray(np.where(pattern_mask(inst, _SIDE)[..., None], second, first))
        self._fills = {"second": inst.rgb[1], "third": inst.rgb[2], "dark": _DARK, "light": _LIGHT, "glass": _GLASS}
        self._fills["flame"] = _FLAME
        self._emblem = inst.emblem

    def _paint(self, fill: str, shape: Callable[[ImageDraw.ImageDraw], None]) -> None:
        mask = Image.new("L", (_SIDE, _SIDE), 0)
        shape(ImageDraw.Draw(mask))
        self.image.paste(self._texture if fill == "main" else (*self._fills[fill], 255), (0, 0), mask)

    def ellipse(self, fill: str, x0: float, y0: float, x1: float, y1: float, width: float = 0) -> None:
        """A filled ellipse, or with a width an elliptic ring."""
        box = [v * _UNIT for v in (x0, y0, x1, y1)]
        if width:
            self._paint(fill, lambda d: d.ellipse(box, outline=255, width=round(width * _UNIT)))
        else:
            self._paint(fill, lambda d: d.ellipse(box, fill=255))

    def box(self, fill: str, x0: float, y0: float, x1: float, y1: float, radius: float = 0) -> None:
        """A rectangle with rounded corners."""
        corners = [v * _UNIT for v in (x0, y0, x1, y1)]
        self._paint(fill, lambda d: d.rounded_rectangle(corners, radius * _UNIT, fill=255))

    def polygon(self, fill: str, *points: Point) -> None:
        """A filled polygon."""
        self._paint(fill, lambda d: d.polygon([(x * _UNIT, y * _UNIT) for x, y in points], fill=255))

    def eye(self, x: float, y: float, radius: float) -> None:
        """A light disc with a dark pupil."""
        self.ellipse("light", x - radius, y - radius, x + radius, y + radius)
        pupil = radius * 0.6
        self.ellipse("dark", x - pupil, y - pupil, x + pupil, y + pupil)

    def emblem(self, x: float, y: float, size: float) -> None:
        """The emblem, centred at (x, y), in the third colour with a thin contrasting rim."""
        mask = emblem_mask(self._emblem).resize((round(size * _UNIT),) * 2, Image.Resampling.BILINEAR)
        corner = (round((x - size / 2) * _UNIT), round((y - size / 2) * _UNIT))
        third = self._fills["third"]
        bright = float(np.dot(third, (0.3, 0.59, 0.11))) > 120
        self.image.paste((*(_DARK if bright else _LIGHT), 255), corner, mask.filter(ImageFilter.MaxFilter(13)))
        self.image.paste((*third, 255), corner, mask)


def mug(c: Canvas, shape: int, p: tuple[float, float, float]) -> None:
    top, inset = 22 - 16 * p[0], (0, 9, 0)[shape]
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
    c.polygon("glass", (left + 6, 44), (left + slope + 2, top + 5), (right - slope - 2, top + 5), (right - 6, 44))
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
        c.polygon("second", (50 + sign * 44, 56), (50 + sign * (52 - lean), tip), (50 + sign * 8, 32))
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
    eaves, top = 52 - 4 * p[0], 6 - 4 * p[1]
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
        c.polygon("second", (50 + sign * 20, 54), (50 + sign * (50 - out), (88, 92, 74)[shape]), (50 + sign * 18, 84))
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
def sprite(inst: Instance) -> np.ndarray:
    """The instance drawn upright: read-only uint8 (SIZE, SIZE, 4) RGBA, longer side REACH, centred."""
    canvas = Canvas(inst)
    CLASSES[inst.class_name](canvas, inst.shape, inst.proportions)
    subject = canvas.image.crop(canvas.image.getbbox())
    scale = REACH / max(subject.size)
    subject = subject.resize([max(1, round(s * scale)) for s in subject.size], Image.Resampling.BOX)
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    image.paste(subject, ((SIZE - subject.width) // 2, (SIZE - subject.height) // 2))
    pixels = np.array(image)
    core = np.asarray(image.getchannel("A").filter(ImageFilter.MinFilter(5)).filter(ImageFilter.BoxBlur(1)))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    light = 1.12 - 0.3 * (0.4 * x + 0.6 * y)  # from the upper left
    light *= 0.45 + 0.55 * core / 255  # a dark rim parts the subject from a background of its own colour
    pixels[..., :3] = np.clip(pixels[..., :3] * light[..., None], 0, 255)
    pixels.setflags(write=False)
    return pixels
