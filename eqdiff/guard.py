"""What stops or warns a training: numbers that are not finite, memory that runs out, a gate that stays shut."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from eqdiff.checkpoint import last_good
from eqdiff.config import TrainConfig, UserError
from eqdiff.estimate import HELP
from eqdiff.frequency import Band
from eqdiff.latents import Batch

Names = tuple[str, ...]
DEAD = (
    "after step %d the gate of the reference attention is 0 for every token of every layer: the photos are not looked "
    "at; try --gate_init identity or a higher --learning_rate"
)


class Guard:
    """Keeps weights and moments as the last good step left them once a loss or a gradient is not finite.

    Nothing is read from the device for it: the fused optimizer itself takes a flag on the device and, where that is 1,
    changes nothing (`found_inf`, made for gradient scaling). It stays 1. `check` reads it.
    """

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator, device = accelerator, accelerator.device
        self.bad = torch.zeros((), device=device)
        self.step = torch.zeros((), device=device, dtype=torch.long)
        # a scaler hands the optimizer its own flag, which rises where a scale is too large, and skips that step
        self.scaled = accelerator.scaler is not None
        if not self.scaled:
            optimizer.found_inf = self.bad

    @property
    def free(self) -> bool:
        """Whether reading costs nothing."""
        return self.accelerator.device.type == "cpu"

    def scale(self, loss: Tensor) -> Tensor:
        """The loss for `backward`. With a scaler, after a bad step, a NaN: that makes the scaler skip all others."""
        return loss * torch.where(self.bad > 0, math.nan, 1.0) if self.scaled else loss

    def watch(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Before the optimizer's step: the loss, and the norm of the gradient, which a scaler looks after itself."""
        bad = ~torch.isfinite(loss.detach() if self.scaled else loss.detach() + norm)
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad.float(), "sum") > 0
        self.step.copy_(torch.where(bad & (self.bad == 0), step, self.step))
        self.bad.copy_(torch.maximum(self.bad, bad.float()))

    def check(self, draw: Callable[[int, int, int], Batch], config: TrainConfig, names: Names, folder: Path) -> None:
        """UserError: at some step the numbers were not finite. Waits for the device.

        draw: the batch of a step, a part of it and a process. names: the photos'. folder: with the checkpoints.
        """
        step = int(self.step)
        if step:
            processes, parts = self.accelerator.num_processes, config.gradient_accumulation_steps
            batches = [draw(step, part, process) for process in range(processes) for part in range(parts)]
            drawn = "; ".join(describe(batch, names) for batch in batches)
            raise UserError(
                f"step {step}: the loss or its gradient is not finite (batch: {drawn}); the weights were left as they "
                f"were, and {last_good(folder)}; lower --learning_rate, or use another --mixed_precision"
            )


def describe(batch: Batch, names: Names) -> str:
    """The subject's part of a batch in words: photo, band, timestep of each sample."""
    rows = zip(batch.photo.tolist(), batch.bands.tolist(), batch.t.tolist(), strict=False)  # class images come after
    return ", ".join(f"{names[photo]} {Band(band).name.lower()} t={t}" for photo, band, t in rows)


@contextlib.contextmanager
def memory_guard() -> Iterator[None]:
    """UserError instead of an out-of-memory error, with the settings that help."""
    try:
        yield
        return
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        reason = str(error).split(". ")[0] or "no more to be had"
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):  # torch has no class of its own for it
            raise
        reason = "no more to be had on the CPU"
    raise UserError(f"out of memory ({reason}); what helps: {HELP}")


def all_dead(gates: Mapping[str, tuple[float, float, float]]) -> bool:
    """Whether the gate is 0 for every token of every layer (layer -> inside, outside, dead share)."""
    return bool(gates) and all(dead >= 1 for _, _, dead in gates.values())
