"""Estimates the memory that a training needs, before its first step.

    memory = weights + 12 bytes for each learned number + activations

The 12 bytes are its fp32 gradient and AdamW's two moments. The activations grow with the samples
of a step, the cells of a latent and the channels of the UNet's finest level:

    activations = bytes x numbers x samples x cells x channels

The numbers (UNITS) and bytes were counted at SD 1.4's sizes by `python -m benchmarks.activations`,
which finds the most that a step of our own code holds, with nothing computed. They hold for
attention that builds no N x N map, as torch's fused attention does.
"""

from dataclasses import dataclass

import psutil
import torch

from eqdiff.model import Customized
from eqdiff.settings.train import TrainConfig

PER_LEARNED = 12  # bytes
UNITS = {False: 340.0, True: 103.0}  # numbers kept, by gradient checkpointing
BYTES = {"no": 4.0, "bf16": 3.1, "fp16": 3.1}  # of a number, on average: norms keep fp32 inputs
HELP = (
    "--gradient_checkpointing, --train_batch_size 1 --gradient_accumulation_steps 2, "
    "or a smaller --resolution"
)


@dataclass(frozen=True)
class Memory:
    """The memory of a training by part [bytes]."""

    weights: float
    learning: float
    activations: float

    @property
    def total(self) -> float:
        """All of it [bytes]."""
        return self.weights + self.learning + self.activations


def estimate_memory(model: Customized, config: TrainConfig, precision: str) -> Memory:
    """The memory that a training of `model` needs, by the module's formula.

    precision: the run's, "no", "bf16" or "fp16". Weights count as the model holds them. The VAE and
    the cached latents do not count: they wait in the computer's own memory.
    """
    vae = {id(parameter) for parameter in model.vae.parameters()}
    weights = sum(p.nbytes for p in model.parameters() if id(p) not in vae)
    learned = sum(p.numel() for p in model.concept_parameters().values())

    samples = config.train_batch_size * (2 if config.with_prior_preservation else 1)
    cells = (config.resolution // 8) ** 2
    unit = samples * model.streams * cells * model.unet.config.block_out_channels[0]
    activations = BYTES[precision] * UNITS[config.gradient_checkpointing] * unit

    return Memory(weights, PER_LEARNED * learned, activations)


def free_bytes(device: torch.device) -> int:
    """All the memory that this process may have on the device [bytes], with what it holds now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def estimate_lines(need: float, free: float, where: str) -> list[str]:
    """One line on memory needed and free [bytes]; a second one if it will not fit: what helps."""
    lines = [f"about {need / 1e9:.1f} GB of {where} wanted, {free / 1e9:.1f} GB free"]
    if need > free:
        lines.append(f"warning: that may be too much for this machine; what helps: {HELP}")
    return lines
