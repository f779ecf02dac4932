"""Class images for prior preservation, made by the base itself, once per base and class, and kept as pictures."""

import hashlib
import os
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eqdiff.base import Base
from eqdiff.config import TrainConfig, UserError
from eqdiff.data import square, to_pil
from eqdiff.encoding import cache_root
from eqdiff.photos import find_photos, load_photo
from eqdiff.pipeline import EqDiffPipeline, seed_of

BATCH = 8


def cache_folder(base: Base, config: TrainConfig) -> Path:
    """Where these class images live under the cache's root: by base, class and how they are made."""
    made = (config.class_prompt, config.class_inference_steps, config.class_guidance_scale, config.resolution)
    mark = hashlib.sha256(repr(made).encode()).hexdigest()[:8]
    word = "".join(c if c.isalnum() else "_" for c in config.class_word or "")[:40]
    return cache_root() / "class_images" / f"{word}-{base.fingerprint}-{mark}"


def class_images(base: Base, config: TrainConfig, device: torch.device, *, quiet: bool = False) -> Tensor:
    """`num_class_images` pictures of the class (m,3,R,R) in [-1,1]; those missing in the folder are drawn first, with
    the base on `device` for that time."""
    folder = Path(config.class_data_dir) if config.class_data_dir else cache_folder(base, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    except OSError as error:
        raise UserError(f"class images in {folder}: {error.strerror}; give another --class_data_dir") from None
    missing = config.num_class_images - len(found)
    if missing > 0:
        pipe = EqDiffPipeline.of(base).to(device)
        _draw(pipe, config, folder, first=len(found), count=missing, quiet=quiet)
        pipe.to("cpu")
    files = [
        load_photo(path, enough=2 * config.resolution).image for path in find_photos(folder)[: config.num_class_images]
    ]
    squares = [square(image, None, config.resolution)[0] for image in files]
    return torch.stack([tv.pil_to_tensor(image).float() / 127.5 - 1 for image in squares])


@torch.no_grad()
def _draw(pipe: EqDiffPipeline, config: TrainConfig, folder: Path, *, first: int, count: int, quiet: bool) -> None:
    prompt = config.class_prompt.replace("{}", config.class_word or "")
    with tqdm(total=count, desc="class images", unit="image", disable=quiet) as bar:
        # whole batches, also where some of their pictures are there: what a picture is shall not depend on them
        for start in range(first - first % BATCH, first + count, BATCH):
            numbers = range(start, min(start + BATCH, first + count))
            images = pipe(
                [prompt] * len(numbers),
                seeds=[seed_of(config.seed, prompt, number) for number in numbers],
                num_inference_steps=config.class_inference_steps,
                guidance_scale=config.class_guidance_scale,
                height=config.resolution,
                width=config.resolution,
                output_type="pt",
            ).images
            wanted = [(number, image) for number, image in zip(numbers, images, strict=True) if number >= first]
            for number, image in wanted:
                _write(to_pil(image * 2 - 1), folder / f"{number:05d}.png")
            bar.update(len(wanted))


def _write(image: Image.Image, path: Path) -> None:
    beside = path.with_suffix(".partial")
    image.save(beside, format="PNG")
    os.replace(beside, path)
