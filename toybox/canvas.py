"""What a subject's parts are drawn on: 100 x 100 units (y down), four times a sprite's pixels."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from toybox.instances import Instance
from toybox.markings import Point, emblem_mask, pattern_mask

SIZE = 128  # side of a sprite and of a picture [pixels]
_SIDE = 4 * SIZE  # parts are drawn at four times the size and reduced once
_UNIT = _SIDE / 100
_DARK = (30, 30, 38)
_LIGHT = (248, 246, 240)
_GLASS = (176, 220, 240)
_FLAME = (255, 160, 30)


class Canvas:
    """Draws parts of an instance.

    The fill "main" is the pattern. Other fills are "second" and "third", the instance's colours,
    and the fixed ones "dark", "light", "glass" and "flame".
    """

    def __init__(self, instance: Instance) -> None:
        self.image = Image.new("RGBA", (_SIDE, _SIDE), (0, 0, 0, 0))
        first, second, third = instance.rgb
        pattern = pattern_mask(instance, _SIDE)[..., None]
        texture = np.where(pattern, np.array(second, np.uint8), np.array(first, np.uint8))
        self._texture = Image.fromarray(texture)

        self._emblem = instance.emblem
        self._fills = {
            "second": second,
            "third": third,
            "dark": _DARK,
            "light": _LIGHT,
            "glass": _GLASS,
            "flame": _FLAME,
        }

    def _paint(self, fill: str, shape: Callable[[ImageDraw.ImageDraw], None]) -> None:
        mask = Image.new("L", (_SIDE, _SIDE), 0)
        shape(ImageDraw.Draw(mask))
        colour = self._texture if fill == "main" else (*self._fills[fill], 255)
        self.image.paste(colour, (0, 0), mask)

    def ellipse(
        self, fill: str, x0: float, y0: float, x1: float, y1: float, width: float = 0
    ) -> None:
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
        corners = [(x * _UNIT, y * _UNIT) for x, y in points]
        self._paint(fill, lambda d: d.polygon(corners, fill=255))

    def eye(self, x: float, y: float, radius: float) -> None:
        """A light disc with a dark pupil."""
        self.ellipse("light", x - radius, y - radius, x + radius, y + radius)
        pupil = radius * 0.6
        self.ellipse("dark", x - pupil, y - pupil, x + pupil, y + pupil)

    def emblem(self, x: float, y: float, size: float) -> None:
        """The emblem, centred at (x, y), in the third colour with a thin contrasting rim."""
        side = round(size * _UNIT)
        mask = emblem_mask(self._emblem).resize((side, side), Image.Resampling.BILINEAR)
        corner = (round((x - size / 2) * _UNIT), round((y - size / 2) * _UNIT))

        third = self._fills["third"]
        bright = float(np.dot(third, (0.3, 0.59, 0.11))) > 120
        rim = (*(_DARK if bright else _LIGHT), 255)
        self.image.paste(rim, corner, mask.filter(ImageFilter.MaxFilter(13)))
        self.image.paste((*third, 255), corner, mask)
