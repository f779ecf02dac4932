"""What step.py, sample.py and memory.py run: the project's own training and pipeline, set up to be timed, not to learn.

Speed and memory do not depend on values: class images are noise, the concept is as training starts it.
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
from common import random_base
from PIL import Image

from eqdiff.base import Base, default_precision, load_base
from eqdiff.concept import Concept, References, capture_concept
from eqdiff.config import ASSETS, BUNDLED_BASE, TrainConfig, preset_config
from eqdiff.model import EqDiff, start_rows
from train_eqdiff import Laps, Run

SUBJECT = ASSETS / "subjects" / "dotted_mug"
CLASS_IMAGES, REFERENCES = 8, 8  # few: how many there are is nothing to a step
ABLATION_A: dict[str, Any] = {"rra": False, "fdte": False, "masking": "none"}


def add_base_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sd14", action="store_true", help="SD 1.4's sizes, random weights, 512 px (a GPU's work)")
    parser.add_argument("--base", default=str(BUNDLED_BASE), help="folder of another base (default: the toybox's)")
    parser.add_argument("--resolution", type=int, help="side of the pictures [pixels] (default: the base's own)")


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def fresh_base(args: argparse.Namespace, *, frozen_bf16: bool = False) -> Base:
    """A base nobody else holds, on the CPU unless random; fp32, as the scripts load it, unless `frozen_bf16`."""
    if not args.sd14:
        return load_base(args.base)
    torch.manual_seed(0)
    bf16 = frozen_bf16 and default_precision() == "bf16"
    return random_base(device_name(), torch.bfloat16 if bf16 else torch.float32)


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder that is also the cache: what a benchmark encodes is not left for real trainings."""
    former = os.environ.get("EQDIFF_CACHE")
    with TemporaryDirectory() as name:
        os.environ["EQDIFF_CACHE"] = name
        try:
            yield Path(name)
        finally:
            os.environ.pop("EQDIFF_CACHE")
            if former is not None:
                os.environ["EQDIFF_CACHE"] = former


def settings(args: argparse.Namespace, base: Base, work: Path, **changes: Any) -> TrainConfig:
    """The preset of the base, on a bundled subject and class images of noise in `work`."""
    pixels = args.resolution or 8 * base.unet.config.sample_size
    classes = work / "class_images"
    if not classes.exists():
        classes.mkdir()
        draws = np.random.default_rng(0)
        for number in range(CLASS_IMAGES):
            noise = draws.integers(256, size=(pixels, pixels, 3), dtype=np.uint8)
            Image.fromarray(noise).save(classes / f"{number}.png")
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


def training(config: TrainConfig, base: Base, accelerator: Accelerator) -> Run:
    """A training that has come as far as its first step."""
    run = Run(config, accelerator, Path(config.output_dir), base, Laps())
    run.model.unet.train(config.gradient_checkpointing)
    return run


def make_accelerator() -> Accelerator:
    return Accelerator(mixed_precision=default_precision())


def fresh_concept(config: TrainConfig, base: Base) -> tuple[EqDiff, Concept]:
    """A model as training starts it, and its concept with a reference of noise."""
    rows = start_rows(base, word=config.class_word, n_rows=2, scale=1.0)
    model = EqDiff(base, rows, rra_layers=config.rra_layers, gate_init="identity")
    side, generator = config.resolution // 8, torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 1, 4, side, side, generator=generator)
    references = References(latent, torch.ones(1, 1, side, side), noise, ("reference.png",))
    return model, capture_concept(model, references, dataclasses.asdict(config), 0)
