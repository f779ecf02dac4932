"""What the base is trained on: latents, masks and scenes of drawn pictures, without the pictures.

    python -m toybox.latents --count 150000

A scene can be drawn again from its numbers at any time, so 150,000 pictures take 350 MB instead of
7.4 GB. Each worker draws and encodes whole shards. Shards that exist are kept.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTokenizer

from toybox.captions import caption
from toybox.dataset import cells_of, labels_of, scene_of, to_tensor, training_scene
from toybox.judges import tokenize
from toybox.world import Scene, draw, random_scene

SHARD = 500  # pictures
DROP = 0.1  # share of empty captions, for classifier-free guidance
VALIDATION_SEED = (
    2024  # of the scenes that the loss is measured on, none of them of the train table
)
CAPTION_SEED = 31  # of the wordings, beside the step's own numbers


@dataclass(frozen=True)
class Latents:
    """What the shards of a folder hold.

    latents: float16 (N, 4, 16, 16), scaled means; masks: uint8 (N, 16, 16); labels: int64 (N, 7),
    columns as dataset.LABELS; patches, for a trial: float16 (N, 64, D), what a DINO sees; ids, for
    a GPU: int16 (N, W, L), the tokens of W captions each.
    """

    latents: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    patches: np.ndarray | None = None
    ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """What the base's loss gets.

    latents: (B, 4, 16, 16); ids: the captions' tokens, int64 (B, L); masks: (B, 1, 16, 16) in
    0..1; patches: (B, 64, D) or None.
    """

    latents: Tensor
    ids: Tensor
    masks: Tensor
    patches: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        parts = (self.latents, self.ids, self.masks, self.patches)
        return Batch(*(None if part is None else part.to(device) for part in parts))


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """uint8 (N, 128, 128, 3) -> float16 (N, 4, 16, 16), the scaled means of the latents."""
    parts = to_tensor(images).split(32)
    means = [vae.encode(part.to(vae.device)).latent_dist.mean for part in parts]
    return (torch.cat(means) * vae.config.scaling_factor).half().cpu().numpy()


def encode_scenes(vae: AutoencoderKL, scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Latents and masks of scenes, as in `Latents`."""
    pictures = [draw(scene) for scene in scenes]
    latents = encode(vae, np.stack([picture.image for picture in pictures]))
    return latents, np.stack([cells_of(picture) for picture in pictures])


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.npz"


def wordings_of(scenes: list[Scene], tokenizer: CLIPTokenizer, count: int) -> np.ndarray:
    """Tokens of `count` captions of each scene: int16 (N, count, L)."""
    texts = []
    for scene in scenes:
        rng = np.random.default_rng([CAPTION_SEED, scene.seed])
        texts += [caption(scene.subjects, scene.context, scene.style, rng) for _ in range(count)]
    ids = tokenize(tokenizer, texts).to(torch.int16)
    return ids.view(len(scenes), count, -1).numpy()


def _make_shard(job: tuple[Path, Path, int, int]) -> None:
    folder, base, number, wordings = job
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32).eval().to(device)

    scenes = [training_scene(seed) for seed in range(number * SHARD, (number + 1) * SHARD)]
    latents, masks = encode_scenes(vae, scenes)
    arrays = {"latents": latents, "masks": masks}
    arrays["labels"] = np.array([labels_of(scene) for scene in scenes])
    if wordings:
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        arrays["ids"] = wordings_of(scenes, tokenizer, wordings)

    partial = folder / f"{number:05}.{os.getpid()}.partial.npz"
    np.savez(partial, **arrays)
    partial.replace(_shard(folder, number))


def build(
    folder: Path, base: Path, first: int, count: int, workers: int, wordings: int = 0
) -> None:
    """Draws and encodes `count` training scenes from number `first` on into shards.

    base: the folder of VAE and tokenizer. wordings: captions of a scene, as tokens; 0: none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(first // SHARD, (first + count) // SHARD)
    missing = [number for number in numbers if not _shard(folder, number).exists()]
    jobs = [(folder, base, number, wordings) for number in missing]

    with get_context("spawn").Pool(workers) as pool:
        done = pool.imap_unordered(_make_shard, jobs)
        for _ in tqdm(done, total=len(jobs), desc="encoding", unit="shard"):
            pass


def load(folder: Path) -> Latents:
    """All shards of a folder; with patches or tokens if each shard has them."""
    return joined(sorted(folder.glob("?????.npz")))


def joined(files: Sequence[Path]) -> Latents:
    """These shards."""
    shards = [np.load(file) for file in files]
    names = ["latents", "masks", "labels"]
    names += [name for name in ("patches", "ids") if all(name in shard for shard in shards)]
    return Latents(**{name: np.concatenate([shard[name] for shard in shards]) for name in names})


def validation(vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int) -> Batch:
    """Scenes of the dev table, any triple, each with one wording."""
    rng = np.random.default_rng(VALIDATION_SEED)
    scenes = [random_scene(rng, "dev", avoid_held_out=False) for _ in range(count)]
    latents, masks = encode_scenes(vae, scenes)
    texts = [caption(scene.subjects, scene.context, scene.style, rng) for scene in scenes]
    return _batch(latents, tokenize(tokenizer, texts), masks)


def _batch(latents: np.ndarray, ids: Tensor, masks: np.ndarray) -> Batch:
    shares = torch.from_numpy(masks).float().div(255)[:, None]
    return Batch(torch.from_numpy(latents).float(), ids, shares)


def batch_at(
    data: Latents, tokenizer: CLIPTokenizer, size: int, position: tuple[int, ...]
) -> Batch:
    """The training batch of a position such as (seed, step, rank).

    It depends on nothing else, so that a run that was killed goes on with the very same draws.
    """
    rng = np.random.default_rng([CAPTION_SEED, *position])
    rows = rng.integers(len(data), size=size)
    scenes = [scene_of(row) for row in data.labels[rows]]

    texts = [caption(scene.subjects, scene.context, scene.style, rng) for scene in scenes]
    kept = rng.random(size) >= DROP
    texts = [text if whole else "" for text, whole in zip(texts, kept, strict=True)]

    batch = _batch(data.latents[rows], tokenize(tokenizer, texts), data.masks[rows])
    if data.patches is None:
        return batch
    return replace(batch, patches=torch.from_numpy(data.patches[rows]).float())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw and encode the base's training scenes.")
    parser.add_argument("--data", type=Path, default=Path("runs/toybox/latents"), metavar="DIR")
    parser.add_argument("--base", type=Path, default=Path("assets/toybox/base"), metavar="DIR")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--count", type=int, default=150000, help="number of scenes")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument(
        "--wordings", type=int, default=0, help="captions of a scene as tokens, for a GPU"
    )
    args = parser.parse_args()
    build(args.data, args.base, args.first, args.count, args.workers, args.wordings)
