"""The base: Stable Diffusion 1.x as it comes, its precision, and the fingerprint of its weights."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqdiff.config import UserError

FINGERPRINT_SAMPLES = 64  # values of each tensor
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def default_precision() -> str:
    """bf16 on a GPU that has it, else full precision: CPUs without bf16 units take 100 times as long in it."""
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


@dataclass
class Base:
    """A loaded Stable Diffusion 1.x: its parts, the name it was loaded by and the fingerprint of its weights."""

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    name: str
    fingerprint: str

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.scheduler.alphas_cumprod


def load_base(name: str) -> Base:
    """An SD 1.x in diffusers layout, folder or hub id, in fp32. UserError: not found, or another kind of model."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # five files in a second are no progress to watch
    index = Path(name) / "model_index.json"
    if (Path(name).is_dir() and not index.is_file()) or name.startswith((".", "/")) and not Path(name).exists():
        raise UserError(
            f"base {name}: no model_index.json there; name a Stable Diffusion 1.x folder in diffusers layout"
        )
    try:
        pipe = StableDiffusionPipeline.from_pretrained(name, safety_checker=None, requires_safety_checker=False)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"base {name}: cannot be loaded as Stable Diffusion 1.x ({reason}); name another") from None
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        for weight in part.parameters():
            weight.data = weight.data.float()
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    if scheduler.config.prediction_type != "epsilon" or pipe.unet.config.in_channels != 4:
        kind = f"{scheduler.config.prediction_type} prediction, {pipe.unet.config.in_channels} input channels"
        raise UserError(f"base {name}: {kind}; name a Stable Diffusion 1.x base (epsilon prediction, 4 channels)")
    parts = (pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, scheduler)
    return Base(*parts, name=name, fingerprint=fingerprint(pipe.unet, pipe.text_encoder))


def fingerprint(*modules: nn.Module) -> str:
    """16 hex digits that tell weights apart: names, shapes and a few values of every tensor, rounded to bf16."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.named_parameters()):
            flat = tensor.detach().flatten()
            few = flat[:: max(1, len(flat) // FINGERPRINT_SAMPLES)].float().bfloat16().float().cpu()
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + few.numpy().tobytes())
    return digest.hexdigest()[:16]
