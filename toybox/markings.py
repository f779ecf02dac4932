"""Markings of a subject: its pattern and its emblem."""

import numpy as np
from PIL import Image, ImageDraw

from toybox.instances import Instance

Point = tuple[float, float]


def pattern_mask(instance: Instance, side: int) -> np.ndarray:
    """Where the second colour goes: bool (side, side)."""
    line = np.arange(side) / (side * instance.period)  # in periods
    x = line[None, :]
    u = x + instance.phase
    v = line[:, None] + instance.phase

    if instance.pattern == "plain":
        return np.zeros((side, side), bool)
    if instance.pattern == "striped":
        return np.broadcast_to(u % 1 < 0.42, (side, side))
    if instance.pattern == "banded":
        return np.broadcast_to(v % 1 < 0.42, (side, side))

    if instance.pattern == "dotted":
        return ((u + 0.5 * (v // 1 % 2)) % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.3**2
    if instance.pattern == "checkered":
        return (u * 1.5 // 1 + v * 1.5 // 1) % 2 < 1
    if instance.pattern == "zigzag":
        return (v + 0.9 * np.abs(u % 1 - 0.5)) % 1 < 0.42

    return np.broadcast_to(x * instance.period > 0.5, (side, side))  # two-tone


def emblem_mask(kind: str) -> Image.Image:
    """An emblem as an "L" image of 128 x 128, with a margin that leaves room for the rim."""
    image = Image.new("L", (128, 128), 0)
    draw = ImageDraw.Draw(image)

    def star(points: int, inner: float) -> list[Point]:
        angles = np.arange(2 * points) * np.pi / points - np.pi / 2
        radii = np.where(np.arange(2 * points) % 2, inner, 54.0)
        corners = zip(angles, radii, strict=True)
        return [(64 + r * float(np.cos(a)), 64 + r * float(np.sin(a))) for a, r in corners]

    if kind == "star":
        draw.polygon(star(5, 24), fill=255)
    elif kind == "sun":
        draw.polygon(star(10, 34), fill=255)
        draw.ellipse([28, 28, 100, 100], fill=255)
        draw.ellipse([48, 48, 80, 80], fill=0)
    elif kind == "heart":
        draw.ellipse([12, 18, 66, 72], fill=255)
        draw.ellipse([62, 18, 116, 72], fill=255)
        draw.polygon([(16, 58), (112, 58), (64, 116)], fill=255)
    elif kind == "moon":
        draw.ellipse([12, 12, 116, 116], fill=255)
        draw.ellipse([48, 2, 136, 94], fill=0)
    elif kind == "cross":
        draw.rectangle([46, 12, 82, 116], fill=255)
        draw.rectangle([12, 46, 116, 82], fill=255)
    elif kind == "ring":
        draw.ellipse([12, 12, 116, 116], outline=255, width=26)
    elif kind == "triangle":
        draw.polygon([(64, 10), (118, 108), (10, 108)], fill=255)
    else:  # diamond
        draw.polygon([(64, 8), (106, 64), (64, 120), (22, 64)], fill=255)
    return image
