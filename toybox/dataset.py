"""Drawn pictures on disk: all cores draw them once.

The trainings of the VAE and of the instruments map them into memory.
"""

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
from toybox.instances import CLASS_NAMES, index_of, instance
from toybox.world import CONTEXT_NAMES, PAIR_SHARE, STYLE_NAMES, Picture, Scene, draw, random_scene

# other_class and other_instance are -1 where nobody stands beside the subject
LABELS = ("class", "context", "style", "instance", "seed", "other_class", "other_instance")
LATENT_SIDE = 16


def labels_of(scene: Scene) -> tuple[int, ...]:
    """A scene of the train table as numbers, one a column of LABELS."""
    beside = (-1, -1)
    if scene.other is not None:
        beside = (CLASS_NAMES.index(scene.other.class_name), index_of(scene.other, "train"))

    return (
        CLASS_NAMES.index(scene.instance.class_name),
        CONTEXT_NAMES.index(scene.context),
        STYLE_NAMES.index(scene.style),
        index_of(scene.instance, "train"),
        scene.seed,
        *beside,
    )


def scene_of(row: np.ndarray) -> Scene:
    """The scene of a row of LABELS."""
    class_id, context, style, number, seed, other_class, other = (int(value) for value in row)
    subject = instance("train", CLASS_NAMES[class_id], number)
    beside = None if other < 0 else instance("train", CLASS_NAMES[other_class], other)
    return Scene(subject, CONTEXT_NAMES[context], STYLE_NAMES[style], seed, beside)


def cells_of(picture: Picture) -> np.ndarray:
    """uint8 (16, 16): the share of each latent's cell that is subject, in 0..255."""
    return picture.mask.reshape(LATENT_SIDE, 8, LATENT_SIDE, 8).mean((1, 3)).astype(np.uint8)


def training_scene(seed: int, pair_share: float = PAIR_SHARE) -> Scene:
    """The training scene of a seed: no held-out triple or pair of classes."""
    return random_scene(np.random.default_rng([seed, 77]), pair_share=pair_share)


@dataclass(frozen=True)
class Dataset:
    """Pictures of training scenes.

    images: uint8 (N, 128, 128, 3); masks: uint8 (N, 16, 16), see `cells_of`; labels: int64 (N, 7),
    columns as LABELS.
    """

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def scene(self, index: int) -> Scene:
        return scene_of(self.labels[index])

    def caption(self, index: int, rng: np.random.Generator) -> str:
        scene = self.scene(index)
        return caption(scene.subjects, scene.context, scene.style, rng)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return scaled(torch.from_numpy(np.ascontiguousarray(images)))


def scaled(images: Tensor) -> Tensor:
    """The same of a tensor, where it is."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _draw_row(job: tuple[int, float]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    scene = training_scene(*job)
    picture = draw(scene)
    return picture.image, cells_of(picture), labels_of(scene)


def build(
    folder: Path, count: int, workers: int, first_seed: int = 0, pair_share: float = PAIR_SHARE
) -> None:
    """Draws `count` training pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    images = open_memmap(folder / "images.npy", "w+", np.uint8, (count, 128, 128, 3))
    masks = np.zeros((count, LATENT_SIDE, LATENT_SIDE), np.uint8)
    labels = np.zeros((count, len(LABELS)), np.int64)

    jobs = [(seed, pair_share) for seed in range(first_seed, first_seed + count)]
    with get_context("spawn").Pool(workers) as pool:
        rows = pool.imap(_draw_row, jobs, chunksize=64)
        rows = tqdm(rows, total=count, desc="drawing", unit="picture", mininterval=10)
        for index, (image, mask, label) in enumerate(rows):
            images[index] = image
            masks[index] = mask
            labels[index] = label

    images.flush()
    np.save(folder / "masks.npy", masks)
    np.save(folder / "labels.npy", labels)


def load(folder: Path) -> Dataset:
    """The pictures of a folder that `build` has filled. Images are read when they are used."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    return Dataset(images, np.load(folder / "masks.npy"), np.load(folder / "labels.npy"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw training pictures of the toybox.")
    parser.add_argument("--data", type=Path, default=Path("runs/toybox/data"), metavar="DIR")
    parser.add_argument("--count", type=int, default=30000, help="number of pictures")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--pair_share", type=float, default=PAIR_SHARE)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    build(args.data, args.count, args.workers, args.first_seed, args.pair_share)
