"""Scenes and their pictures; `python -m toybox.world --sheet FILE` draws a contact sheet."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from toybox.canvas import SIZE
from toybox.classes import CLASSES, REACH, sprite
from toybox.contexts import CONTEXTS
from toybox.instances import CLASS_NAMES, Instance, instance
from toybox.styles import STYLES

CONTEXT_NAMES = tuple(CONTEXTS)
STYLE_NAMES = tuple(STYLES)
PHOTO_SHARE = 0.3  # of random scenes; the other styles share the rest equally
TRAIN_INSTANCES = 1500  # per class
PAIR_SHARE = 0.1  # of random scenes hold two subjects side by side
SHADOW = 0.5  # its darkest point
PAIR_OFFSET = 0.25  # of each of two subjects from the middle, a share of the frame


@dataclass(frozen=True)
class Scene:
    """Everything that a picture depends on.

    `seed` decides the poses and the background's variation. `other` stands right of the instance,
    if there are two.
    """

    instance: Instance
    context: str
    style: str
    seed: int
    other: Instance | None = None

    @property
    def subjects(self) -> tuple[Instance, ...]:
        """From left to right."""
        return (self.instance,) if self.other is None else (self.instance, self.other)


@dataclass
class Picture:
    """image: uint8 (128, 128, 3); mask: uint8 (128, 128), 255 on the subject and 0 elsewhere."""

    image: np.ndarray
    mask: np.ndarray
    scene: Scene


@dataclass(frozen=True)
class Pose:
    """span: longer side of the subject as a share of the frame; dx, dy: offset likewise.

    angle: in radians.
    """

    span: float
    dx: float
    dy: float
    angle: float


def pose(seed: int) -> Pose:
    """The pose of a seed, always inside the frame.

    Span 0.62..0.82, offset within 0.08, angle within 8 degrees.
    """
    rng = np.random.default_rng([seed, 0])
    span = rng.uniform(0.62, 0.82)
    angle = np.radians(rng.uniform(-8, 8))

    turned = span * (np.cos(angle) + np.sin(abs(angle)))  # a full square subject still fits
    dx, dy = rng.uniform(-1, 1, 2) * min(0.08, (1 - turned) / 2)
    return Pose(float(span), float(dx), float(dy), float(angle))


def pair_poses(seed: int) -> tuple[Pose, Pose]:
    """The poses of two subjects, each within its half of the frame.

    Span 0.38..0.44, angle within 8 degrees.
    """
    rng = np.random.default_rng([seed, 2])
    spans = rng.uniform(0.38, 0.44, 2)
    angles = np.radians(rng.uniform(-8, 8, 2))
    dx = rng.uniform(-0.01, 0.01, 2) + (-PAIR_OFFSET, PAIR_OFFSET)
    dy = rng.uniform(-0.06, 0.1, 2)

    left, right = (Pose(*map(float, each)) for each in zip(spans, dx, dy, angles, strict=True))
    return left, right


def layers_of(scene: Scene) -> list[tuple[np.ndarray, np.ndarray]]:
    """Colours and coverage of a scene's subjects, from left to right, as `subject_layer`."""
    poses = [pose(scene.seed)] if scene.other is None else pair_poses(scene.seed)
    return [subject_layer(*pair) for pair in zip(scene.subjects, poses, strict=True)]


def subject_layer(subject: Instance, where: Pose) -> tuple[np.ndarray, np.ndarray]:
    """The posed subject: colours (128, 128, 3) and coverage (128, 128), float32 in 0..1."""
    shrink = REACH / (where.span * SIZE)
    cos = np.cos(where.angle) * shrink
    sin = np.sin(where.angle) * shrink
    middle = SIZE / 2
    x = middle + where.dx * SIZE
    y = middle + where.dy * SIZE

    inverse = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    upright = Image.fromarray(sprite(subject))
    affine = Image.Transform.AFFINE
    layer = upright.transform((SIZE, SIZE), affine, inverse, Image.Resampling.BILINEAR)
    pixels = np.asarray(layer, np.float32) / 255
    return pixels[..., :3], pixels[..., 3]


def shadow(mask: np.ndarray) -> np.ndarray:
    """A soft shadow under a subject, from its coverage: float32 (128, 128) in 0..SHADOW."""
    rows = np.flatnonzero(mask.max(1) > 0.5)
    columns = np.flatnonzero(mask.max(0) > 0.5)
    centre = (columns[0] + columns[-1]) / 2
    width = (columns[-1] - columns[0]) / 2

    line = np.arange(SIZE, dtype=np.float32)
    across = np.exp(-(((line - centre) / (0.85 * width)) ** 4))
    down = np.exp(-(((line - rows[-1]) / 6.0) ** 2))
    return SHADOW * np.outer(down, across)


def draw(scene: Scene) -> Picture:
    """The picture of a scene."""
    composed = CONTEXTS[scene.context](np.random.default_rng([scene.seed, 1]))
    layers = layers_of(scene)
    for _, cover in layers:
        composed = composed * (1 - shadow(cover))[..., None]
    for colours, cover in layers:
        composed = composed + (colours - composed) * cover[..., None]

    cover = np.maximum.reduce([cover for _, cover in layers])
    image = STYLES[scene.style](np.clip(composed, 0, 1).astype(np.float32), cover)
    mask = np.where(cover > 0.5, 255, 0).astype(np.uint8)
    return Picture((image * 255 + 0.5).astype(np.uint8), mask, scene)


def held_out(class_name: str, context: str, style: str) -> bool:
    """Whether training never sees the triple: 80 of 800, one class for every (context, style)."""
    i = CLASS_NAMES.index(class_name)
    j = CONTEXT_NAMES.index(context)
    k = STYLE_NAMES.index(style)
    return (i + 3 * j + 7 * k) % 10 == 0


def held_out_pair(left: str, right: str) -> bool:
    """Whether training never sees these classes side by side in this order: 10 of 90 orders."""
    return (CLASS_NAMES.index(right) - CLASS_NAMES.index(left)) % 10 == 3


def _random_name(rng: np.random.Generator) -> str:
    return CLASS_NAMES[int(rng.integers(len(CLASS_NAMES)))]


def random_scene(
    rng: np.random.Generator,
    table: str = "train",
    instances: int = TRAIN_INSTANCES,
    photo_share: float = PHOTO_SHARE,
    avoid_held_out: bool = True,
    pair_share: float = 0.0,
) -> Scene:
    """A random scene with one of the first `instances` of its class in the table.

    pair_share: of scenes have another subject beside it. avoid_held_out: draws again until the
    scene is one that training may see.
    """
    others = (1 - photo_share) / (len(STYLE_NAMES) - 1)
    weights = [photo_share if name == "photo" else others for name in STYLE_NAMES]
    two = rng.random() < pair_share if pair_share else False

    while True:
        names = [_random_name(rng) for _ in range(1 + two)]
        context = CONTEXT_NAMES[int(rng.integers(len(CONTEXT_NAMES)))]
        style = STYLE_NAMES[int(rng.choice(len(STYLE_NAMES), p=weights))]
        if len(set(names)) < len(names):
            continue
        unseen = any(held_out(name, context, style) for name in names) or (
            two and held_out_pair(*names)
        )
        if not (avoid_held_out and unseen):
            break

    subject, *beside = (instance(table, name, int(rng.integers(instances))) for name in names)
    other = beside[0] if beside else None
    return Scene(subject, context, style, int(rng.integers(2**31)), other)


def render_many(scenes: Sequence[Scene], workers: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 128, 128, 3) and masks uint8 (N, 128, 128).

    workers: processes that draw, if more than one.
    """
    if workers > 1:
        with get_context("spawn").Pool(workers) as pool:
            pictures = pool.map(draw, scenes, chunksize=64)
    else:
        pictures = [draw(scene) for scene in scenes]

    return np.stack([p.image for p in pictures]), np.stack([p.mask for p in pictures])


def sheet(path: Path) -> None:
    """A contact sheet: classes by styles, then one instance in all contexts by styles."""
    columns = len(STYLE_NAMES)
    scenes = []
    for row, name in enumerate(CLASSES):
        for column, style in enumerate(STYLE_NAMES):
            number = row * columns + column
            context = CONTEXT_NAMES[(row + column) % len(CONTEXT_NAMES)]
            scenes.append(Scene(instance("train", name, number), context, style, number))

    one = instance("dev", "teapot", 0)
    for row, context in enumerate(CONTEXT_NAMES):
        scenes += [Scene(one, context, style, 1000 + row) for style in STYLE_NAMES]

    images, _ = render_many(scenes)
    step = SIZE + 4  # pixels
    board = np.full((len(scenes) // columns * step, columns * step, 3), 255, np.uint8)
    for number, image in enumerate(images):
        y = number // columns * step
        x = number % columns * step
        board[y : y + SIZE, x : x + SIZE] = image
    Image.fromarray(board).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the toybox world.")
    parser.add_argument("--sheet", type=Path, required=True, metavar="FILE")
    sheet(parser.parse_args().sheet)
