"""Drawn pictures on disk: rendered once by all cores, then memory-mapped by every training of this package."""

import argparse
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from toybox.captions import caption
from toybox.instances import CLASS_NAMES, instance
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw, random_scene

LABELS = ("class", "context", "style", "instance", "seed")
LATENT_SIDE = 16


@dataclass(frozen=True)
class Dataset:
    """images: uint8 (N, 128, 128, 3); masks: uint8 (N, 16, 16), the share of the cell that is subject in 0..255;
    labels: int64 (N, 5), columns as LABELS."""

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def scene(self, index: int) -> Scene:
        class_id, context, style, number, seed = (int(v) for v in self.labels[index])
        who = instance("train", CLASS_NAMES[class_id], number)
        return Scene(who, CONTEXT_NAMES[context], STYLE_NAMES[style], seed)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        scene = self.scene(index)
        return caption(scene.instance, scene.context, scene.style, rng)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _labels(scene: Scene, number: int) -> tuple[int, ...]:
    names = (CLASS_NAMES.index(scene.instance.class_name), CONTEXT_NAMES.index(scene.context))
    return (*names, STYLE_NAMES.index(scene.style), number, scene.seed)


def _draw_row(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    rng = np.random.default_rng([seed, 77])
    scene = random_scene(rng)
    number = next(i for i in range(10**6) if instance("train", scene.instance.class_name, i) == scene.instance)
    picture = draw(scene)
    cells = picture.mask.reshape(LATENT_SIDE, 8, LATENT_SIDE, 8).mean((1, 3)).astype(np.uint8)
    return picture.image, cells, _labels(scene, number)


def build(folder: Path, count: int, workers: int, first_seed: int = 0) -> None:
    """Draws `count` training pictures (no held-out triple) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    images = open_memmap(folder / "images.npy", "w+", np.uint8, (count, 128, 128, 3))
    masks = np.zeros((count, LATENT_SIDE, LATENT_SIDE), np.uint8)
    labels = np.zeros((count, len(LABELS)), np.int64)
    with get_context("spawn").Pool(workers) as pool:
        rows = pool.imap(_draw_row, range(first_seed, first_seed + count), chunksize=64)
        for index, row in enumerate(tqdm(rows, total=count, desc="drawing", unit="picture")):
            images[index], masks[index], labels[index] = row
    images.flush()
    np.save(folder / "masks.npy", masks)
    np.save(folder / "labels.npy", labels)


def load(folder: Path) -> Dataset:
    """The pictures of a folder that `build` has filled; images stay on disk and are read as they are used."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    return Dataset(images, np.load(folder / "masks.npy"), np.load(folder / "labels.npy"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the training pictures of the toybox.")
    parser.add_argument("--data", type=Path, default=Path("runs/toybox/data"), metavar="DIR")
    parser.add_argument("--count", type=int, default=48000, help="number of pictures")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    build(args.data, args.count, args.workers)
