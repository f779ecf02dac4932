"""A base's own safety checker. Images that it flags are blurred and reported, never blackened."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image, ImageFilter
from transformers import CLIPImageProcessor

from eqdiff.errors import UserError, reason_of

LOG = logging.getLogger(__name__)
BLUR = 1 / 12  # of the longer side: shapes and colours remain, no more
FOLDER = "safety_checker"


class SafetyChecker(NamedTuple):
    """Stable Diffusion's checker and the preprocessing of its images."""

    model: Any
    processor: Any

    @torch.no_grad()
    def flags(self, images: Sequence[Image.Image]) -> list[bool]:
        """Which of the images are not safe for work, as the checker sees it."""
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values
        weight = next(self.model.parameters())
        unused = [torch.zeros(1) for _ in images]  # it would paint these black
        results = self.model(pixels.to(weight.device, weight.dtype), unused)
        return [bool(flag) for flag in results[1]]


def load_safety_checker(
    base: str, device: torch.device, dtype: torch.dtype
) -> SafetyChecker | None:
    """The checker of a base in diffusers layout, a folder or a hub id.

    None if it has none; single files never have one.

    Raises UserError if it has one that cannot be loaded.
    """
    if not _has_checker(base):
        return None
    if Path(base).is_dir() and not (Path(base) / FOLDER).is_dir():
        LOG.warning(
            "base %s: it names a safety checker that is not there; the pictures are not checked",
            base,
        )
        return None

    # its own warning promises a black picture
    logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
    try:
        model = StableDiffusionSafetyChecker.from_pretrained(
            base, subfolder=FOLDER, use_safetensors=True
        )
        processor = CLIPImageProcessor.from_pretrained(base, subfolder="feature_extractor")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"base {base}: its safety checker cannot be loaded ({reason_of(error)}); "
            "--no-safety_checker"
        ) from None
    return SafetyChecker(model.eval().requires_grad_(False).to(device, dtype), processor)


def blurred(image: Image.Image) -> Image.Image:
    """The image that is written in place of a flagged one."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) * BLUR))


def _has_checker(base: str) -> bool:
    """Whether the base's model_index.json names a checker."""
    index = Path(base) / "model_index.json"
    if Path(base).is_file() or (Path(base).is_dir() and not index.is_file()):
        return False

    try:
        local = index.is_file()
        parts = json.loads(index.read_text()) if local else DiffusionPipeline.load_config(base)
    except (OSError, ValueError) as error:
        raise UserError(f"base {base}: its model_index.json cannot be read ({error})") from None
    return bool((parts.get(FOLDER) or [None])[0])
