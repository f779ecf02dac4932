"""What a training will want of memory, told before its first step, by a stated formula.

    wanted = weights + 12 bytes for each learned number + activations

12: its fp32 gradient and AdamW's two moments. Activations grow with samples a step x cells of a latent x channels of
the UNet's finest level:

    bytes x numbers x samples x cells x channels

Numbers (UNITS) and bytes were counted at SD 1.4's sizes by `python benchmarks/activations.py`: what a step of our own
code holds at most, with nothing computed. They hold for attention that builds no N x N map, as torch's fused does.
"""

from dataclasses import dataclass

import psutil
import torch

from eqdiff.config import TrainConfig
from eqdiff.model import EqDiff

PER_LEARNED = 12  # bytes
UNITS = {False: 340.0, True: 103.0}  # numbers kept, by gradient checkpointing
BYTES = {"no": 4.0, "bf16": 3.1, "fp16": 3.1}  # of one of them, on average: what enters a norm is kept in fp32
HELP = "--gradient_checkpointing, --train_batch_size 1 --gradient_accumulation_steps 2, or a smaller --resolution"


@dataclass(frozen=True)
class Wanted:
    """Memory of a training by part [bytes]."""

    weights: float
    learning: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.learning + self.activations


def wanted(model: EqDiff, config: TrainConfig, precision: str) -> Wanted:
    """The formula. precision: the run's, "no", "bf16" or "fp16"; weights count as the model holds them, without
    the VAE and the cached latents, which wait in the computer's own memory."""
    away = {id(p) for p in model.vae.parameters()}
    weights = sum(p.nbytes for p in model.parameters() if id(p) not in away)
    learned = sum(p.numel() for p in model.concept_parameters().values())
    samples = config.train_batch_size * (2 if config.with_prior_preservation else 1)
    cells = (config.resolution // 8) ** 2
    unit = samples * cells * model.unet.config.block_out_channels[0]
    activations = BYTES[precision] * UNITS[config.gradient_checkpointing] * unit
    return Wanted(weights, PER_LEARNED * learned, activations)


def free_bytes(device: torch.device) -> int:
    """What this process may have in all on the device, with what it holds already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def say_estimate(need: float, free: float, where: str) -> list[str]:
    """One line, and a second one with what helps if it will not fit."""
    lines = [f"about {need / 1e9:.1f} GB of {where} wanted, {free / 1e9:.1f} GB free"]
    if need > free:
        lines.append(f"warning: that may be too much for this machine; what helps: {HELP}")
    return lines
