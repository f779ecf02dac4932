"""Scenes and their pictures; `python -m toybox.world --sheet FILE` draws a contact sheet."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from toybox.classes import CLASSES, REACH, SIZE, sprite
from toybox.contexts import CONTEXTS
from toybox.instances import CLASS_NAMES, Instance, instance
from toybox.styles import STYLES

CONTEXT_NAMES, STYLE_NAMES = tuple(CONTEXTS), tuple(STYLES)
PHOTO_SHARE = 0.3  # of random scenes; the other styles share the rest equally
TRAIN_INSTANCES = 300  # per class
SHADOW = 0.5  # its darkest point


@dataclass(frozen=True)
class Scene:
    """Everything that a picture depends on; `seed` decides the pose and the background's variation."""

    instance: Instance
    context: str
    style: str
    seed: int


@dataclass
class Picture:
    """image: uint8 (128, 128, 3); mask: uint8 (128, 128), 255 on the subject and 0 elsewhere."""

    image: np.ndarray
    mask: np.ndarray
    scene: Scene


@dataclass(frozen=True)
class Pose:
    """span: longer side of the subject as a share of the frame; dx, dy: offset likewise; angle in radians."""

    span: float
    dx: float
    dy: float
    angle: float


def pose(seed: int) -> Pose:
    """The pose of a seed: span 0.62..0.82, offset within 0.08, angle within 8 degrees, always inside the frame."""
    rng = np.random.default_rng([seed, 0])
    span = rng.uniform(0.62, 0.82)
    angle = np.radians(rng.uniform(-8, 8))
    room = (1 - span * (np.cos(angle) + np.sin(abs(angle)))) / 2  # a full square subject still fits
    dx, dy = rng.uniform(-1, 1, 2) * min(0.08, room)
    return Pose(float(span), float(dx), float(dy), float(angle))


def subject_layer(inst: Instance, where: Pose) -> tuple[np.ndarray, np.ndarray]:
    """The posed subject: colours float32 (128, 128, 3) and coverage float32 (128, 128), both in 0..1."""
    shrink = REACH / (where.span * SIZE)
    cos, sin = np.cos(where.angle) * shrink, np.sin(where.angle) * shrink
    middle = SIZE / 2
    x, y = middle + where.dx * SIZE, middle + where.dy * SIZE
    inverse = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    layer = Image.fromarray(sprite(inst)).transform(
        (SIZE, SIZE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    pixels = np.asarray(layer, np.float32) / 255
    return pixels[..., :3], pixels[..., 3]


def shadow(mask: np.ndarray) -> np.ndarray:
    """A soft shadow under the subject's foot: float32 (128, 128) in 0..SHADOW, from its coverage."""
    rows, columns = np.flatnonzero(mask.max(1) > 0.5), np.flatnonzero(mask.max(0) > 0.5)
    centre, width = (columns[0] + columns[-1]) / 2, (columns[-1] - columns[0]) / 2
    line = np.arange(SIZE, dtype=np.float32)
    across = np.exp(-(((line - centre) / (0.85 * width)) ** 4))
    down = np.exp(-(((line - rows[-1]) / 6.0) ** 2))
    return SHADOW * np.outer(down, across)


def draw(scene: Scene) -> Picture:
    """The picture of a scene."""
    background = CONTEXTS[scene.context](np.random.default_rng([scene.seed, 1]))
    colours, cover = subject_layer(scene.instance, pose(scene.seed))
    ground = background * (1 - shadow(cover))[..., None]
    composed = ground + (colours - ground) * cover[..., None]
    image = STYLES[scene.style](np.clip(composed, 0, 1).astype(np.float32), cover)
    return Picture((image * 255 + 0.5).astype(np.uint8), np.where(cover > 0.5, 255, 0).astype(np.uint8), scene)


def held_out(class_name: str, context: str, style: str) -> bool:
    """Whether the triple is one of the 80 of 800 that training never sees; one class for every (context, style)."""
    i, j, k = CLASS_NAMES.index(class_name), CONTEXT_NAMES.index(context), STYLE_NAMES.index(style)
    return (i + 3 * j + 7 * k) % 10 == 0


def random_scene(
    rng: np.random.Generator,
    table: str = "train",
    instances: int = TRAIN_INSTANCES,
    photo_share: float = PHOTO_SHARE,
    avoid_held_out: bool = True,
) -> Scene:
    """A random scene with one of the first `instances` of its class in the table."""
    others = (1 - photo_share) / (len(STYLE_NAMES) - 1)
    weights = [photo_share if name == "photo" else others for name in STYLE_NAMES]
    while True:
        class_name = CLASS_NAMES[int(rng.integers(len(CLASS_NAMES)))]
        context = CONTEXT_NAMES[int(rng.integers(len(CONTEXT_NAMES)))]
        style = STYLE_NAMES[int(rng.choice(len(STYLE_NAMES), p=weights))]
        if not (avoid_held_out and held_out(class_name, context, style)):
            break
    who = instance(table, class_name, int(rng.integers(instances)))
    return Scene(who, context, style, int(rng.integers(2**31)))


def render_many(scenes: Sequence[Scene], workers: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 128, 128, 3) and masks uint8 (N, 128, 128), in as many processes as `workers` if any."""
    if workers > 1:
        with get_context("spawn").Pool(workers) as pool:
            pictures = pool.map(draw, scenes, chunksize=64)
    else:
        pictures = [draw(scene) for scene in scenes]
    return np.stack([p.image for p in pictures]), np.stack([p.mask for p in pictures])


def sheet(path: Path) -> None:
    """A contact sheet: rows of classes by columns of styles, then one instance in all styles by several contexts."""
    cells = [
        Scene(instance("train", name, row * 8 + column), CONTEXT_NAMES[(row + column) % 10], style, row * 8 + column)
        for row, name in enumerate(CLASSES)
        for column, style in enumerate(STYLE_NAMES)
    ]
    one = instance("dev", "teapot", 0)
    cells += [
        Scene(one, context, style, 1000 + row) for row, context in enumerate(CONTEXT_NAMES) for style in STYLE_NAMES
    ]
    images, _ = render_many(cells)
    columns, gap = len(STYLE_NAMES), 4
    rows, step = len(cells) // columns, SIZE + gap
    board = np.full((rows * step, columns * step, 3), 255, np.uint8)
    for number, image in enumerate(images):
        y, x = number // columns * step, number % columns * step
        board[y : y + SIZE, x : x + SIZE] = image
    Image.fromarray(board).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the toybox world.")
    parser.add_argument("--sheet", type=Path, required=True, metavar="FILE")
    sheet(parser.parse_args().sheet)
