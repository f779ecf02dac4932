"""What step.py, sample.py and memory.py run: the project's own training and pipeline, to be timed.

Speed and memory do not depend on values. So class images are noise, and the concept is as training
starts it.
"""

import argparse
import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from benchmarks.common import random_base
from eqdiff.base.load import Base, default_precision, load_base
from eqdiff.concept.concept import Concept, References, capture_concept
from eqdiff.model import EqDiff, new_model
from eqdiff.processes import join_processes
from eqdiff.settings.places import ASSETS, BUNDLED_BASE
from eqdiff.settings.presets import preset_config
from eqdiff.settings.train import TrainConfig
from eqdiff.training.trainer import Trainer

SUBJECT = ASSETS / "subjects" / "dotted_mug"
CLASS_IMAGES = 8  # few: their number is nothing to a step
REFERENCES = 8  # as few
ABLATION_A: dict[str, Any] = {"rra": False, "fdte": False, "masking": "none"}
CACHE = "EQDIFF_CACHE"


def add_base_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a base and its pictures' size."""
    parser.add_argument(
        "--sd14", action="store_true", help="SD 1.4's sizes, random weights, 512 px (a GPU's work)"
    )
    parser.add_argument(
        "--base", default=str(BUNDLED_BASE), help="folder of another base (default: the toybox's)"
    )
    parser.add_argument(
        "--resolution", type=int, help="side of the pictures [pixels] (default: the base's own)"
    )


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def fresh_base(args: argparse.Namespace, *, frozen_bf16: bool = False) -> Base:
    """A base that nobody else holds, on the CPU unless it is random.

    It is in fp32, as the scripts load it, unless `frozen_bf16`.
    """
    if not args.sd14:
        return load_base(args.base)
    torch.manual_seed(0)
    bf16 = frozen_bf16 and default_precision() == "bf16"
    return random_base(device_name(), torch.bfloat16 if bf16 else torch.float32)


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder that is also the cache.

    What a benchmark encodes is not left for real trainings.
    """
    original = os.environ.get(CACHE)
    with TemporaryDirectory() as name:
        os.environ[CACHE] = name
        try:
            yield Path(name)
        finally:
            os.environ.pop(CACHE)
            if original is not None:
                os.environ[CACHE] = original


def write_noise(classes: Path, pixels: int) -> None:
    """Fills a new folder with class images of noise."""
    classes.mkdir()
    draws = np.random.default_rng(0)
    for number in range(CLASS_IMAGES):
        noise = draws.integers(256, size=(pixels, pixels, 3), dtype=np.uint8)
        Image.fromarray(noise).save(classes / f"{number}.png")


def settings(args: argparse.Namespace, base: Base, work: Path, **changes: Any) -> TrainConfig:
    """The preset of the base, on a bundled subject and class images of noise in `work`."""
    pixels = args.resolution or 8 * base.unet.config.sample_size
    classes = work / "class_images"
    if not classes.exists():
        write_noise(classes, pixels)

    given = {
        "class_word": "mug",
        "resolution": pixels,
        "instance_data_dir": str(SUBJECT),
        "output_dir": str(work),
        "class_data_dir": str(classes),
        "num_class_images": CLASS_IMAGES,
        "reference_pool": REFERENCES,
    }
    return preset_config("paper" if args.sd14 else "toybox", **{**given, **changes})


def training(config: TrainConfig, base: Base, accelerator: Accelerator) -> Trainer:
    """A training that has come as far as its first step."""
    trainer = Trainer(config, accelerator, base)
    trainer.set_mode()
    return trainer


def one_step(trainer: Trainer, step: int) -> None:
    """A step as the loop of train_eqdiff.py makes it."""
    for part in range(trainer.config.gradient_accumulation_steps):
        trainer.backward(trainer.losses(trainer.draw(step, part)))
    trainer.descend(step)


def make_accelerator() -> Accelerator:
    return join_processes(default_precision())


def fresh_concept(config: TrainConfig, base: Base) -> tuple[EqDiff, Concept]:
    """A model as training starts it, and its concept with a reference of noise."""
    model = new_model(dataclasses.replace(config, gate_init="identity"), base)
    side = config.resolution // 8
    generator = torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 1, 4, side, side, generator=generator)
    references = References(latent, torch.ones(1, 1, side, side), noise, ("reference.png",))
    return model, capture_concept(model, references, dataclasses.asdict(config), 0)
