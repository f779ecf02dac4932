"""A base's own safety checker: what it flags is blurred and reported, never a silent black picture."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFilter

from eqdiff.config import UserError

LOG = logging.getLogger(__name__)
BLUR = 1 / 12  # of the longer side: shapes and colours remain, no more


class SafetyChecker(NamedTuple):
    """Stable Diffusion's checker and the preprocessing of its pictures."""

    model: Any
    processor: Any

    @torch.no_grad()
    def flags(self, images: Sequence[Image.Image]) -> list[bool]:
        """Which of the pictures are not safe for work, as the checker sees it."""
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values
        weight = next(self.model.parameters())
        unused = [torch.zeros(1) for _ in images]  # it would paint these black
        return [bool(flag) for flag in self.model(pixels.to(weight.device, weight.dtype), unused)[1]]


def load_safety_checker(base: str, device: torch.device, dtype: torch.dtype) -> SafetyChecker | None:
    """The checker of a base in diffusers layout, folder or hub id; None if it has none, as single files have none.

    UserError: it has one that cannot be loaded.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    if not _named(base):
        return None
    if Path(base).is_dir() and not (Path(base) / "safety_checker").is_dir():
        LOG.warning("base %s: it names a safety checker that is not there; the pictures are not checked", base)
        return None
    # its own warning promises a black picture
    logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
    try:
        model = StableDiffusionSafetyChecker.from_pretrained(base, subfolder="safety_checker", use_safetensors=True)
        processor = CLIPImageProcessor.from_pretrained(base, subfolder="feature_extractor")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"base {base}: its safety checker cannot be loaded ({reason}); --no-safety_checker") from None
    return SafetyChecker(model.eval().requires_grad_(False).to(device, dtype), processor)


def blurred(image: Image.Image) -> Image.Image:
    """What is written instead of a flagged picture."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) * BLUR))


def _named(base: str) -> bool:
    """Whether the base's model_index.json names a checker."""
    from diffusers import DiffusionPipeline

    index = Path(base) / "model_index.json"
    if Path(base).is_file() or (Path(base).is_dir() and not index.is_file()):
        return False
    try:
        known = json.loads(index.read_text()) if index.is_file() else DiffusionPipeline.load_config(base)
    except (OSError, ValueError) as error:
        raise UserError(f"base {base}: its model_index.json cannot be read ({error})") from None
    return bool((known.get("safety_checker") or [None])[0])
