"""Stops or warns a training: numbers that are not finite, a dead gate."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from eqdiff.batch import Batch
from eqdiff.finite import LARGE, NotFinite, first_broken
from eqdiff.frequency import Band
from eqdiff.training.checkpoint import last_good

Names = tuple[str, ...]
DEAD = (
    "after step %d the gate of the reference attention is 0 for every token of every layer: "
    "the photos are not looked at; try --gate_init identity or a higher --learning_rate"
)


class Guard:
    """Freezes weights and moments as the last good step left them, once a number is not finite.

    The numbers are a step's loss and gradient. Nothing is read from the device: the fused optimizer
    takes a flag on the device itself (`found_inf`, made for gradient scaling) and changes nothing
    where it is 1. Once 1, it stays 1. `check` reads it.
    """

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        self.optimizer = optimizer
        device = accelerator.device
        self.bad = torch.zeros((), device=device)
        self.step = torch.zeros((), device=device, dtype=torch.long)

        # a gradient scaler gives the optimizer a flag of its own, which rises where a scale is too
        # large, and skips that step
        self.scaled = accelerator.scaler is not None
        if not self.scaled:
            optimizer.found_inf = self.bad

    @property
    def free(self) -> bool:
        """Whether reading the flag costs nothing."""
        return self.accelerator.device.type == "cpu"

    def scale(self, loss: Tensor) -> Tensor:
        """The loss for `backward`.

        With a gradient scaler it is NaN after a bad step, which makes the scaler skip all others.
        """
        if not self.scaled:
            return loss
        return loss * torch.where(self.bad > 0, math.nan, 1.0)

    def watch(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Looks at a step's loss and at its gradient's norm, before the optimizer's step.

        A gradient scaler looks after the gradient itself.
        """
        total = loss.detach() if self.scaled else loss.detach() + norm
        bad = ~torch.isfinite(total)
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad.float(), "sum") > 0

        first = bad & (self.bad == 0)
        self.step.copy_(torch.where(first, step, self.step))
        self.bad.copy_(torch.maximum(self.bad, bad.float()))

    def check(
        self,
        draw: Callable[[int, int, int], Batch],
        parts: int,
        names: Names,
        folder: Path,
    ) -> None:
        """Waits for the device, and reads the flag.

        draw: gives the batch of a step, a part of it and a process. parts: of a step. names: of the
        photos. folder: of the checkpoints.

        Raises NotFinite if the numbers of some step were not finite.
        """
        step = int(self.step)
        if not step:
            return

        processes = range(self.accelerator.num_processes)
        batches = [draw(step, part, process) for process in processes for part in range(parts)]
        drawn = "; ".join(describe(batch, names) for batch in batches)
        raise NotFinite(
            f"step {step}: the loss or its gradient is not finite (batch: {drawn}); "
            f"the weights were left as they were, and {last_good(folder)}; "
            f"{self._remedy(step, batches)}"
        )

    def _remedy(self, step: int, batches: Sequence[Batch]) -> str:
        """What is to blame and what to do, in words."""
        for batch in batches:
            broken = first_broken(vars(batch).items())
            if broken:
                return f"the batch's own {broken} is not finite: look at the base's VAE"

        precision = self.accelerator.mixed_precision
        other = f"use another --mixed_precision than {precision}"
        flags = [group.get("flag", "--learning_rate") for group in self.optimizer.param_groups]
        if step == 1:
            rest = "" if precision == "no" else f", or {other}"
            return f"no weight had moved yet: look at the base and at the photos{rest}"

        grown = [
            flag
            for flag, group in zip(flags, self.optimizer.param_groups, strict=True)
            if any(float(p.detach().abs().max()) > LARGE for p in group["params"])
        ]
        lower = f"lower {' and '.join(grown or flags)}"
        return lower if precision == "no" else f"{lower}, or {other}"


def describe(batch: Batch, names: Names) -> str:
    """The subject's part of a batch in words: photo, band and timestep of each sample."""
    photos = batch.photo.tolist()
    bands = batch.bands.tolist()
    timesteps = batch.t.tolist()

    samples = zip(photos, bands, timesteps, strict=False)  # class images come after the photos
    words = [f"{names[photo]} {Band(band).name.lower()} t={t}" for photo, band, t in samples]
    return ", ".join(words)


def all_dead(gates: Mapping[str, tuple[float, float, float]]) -> bool:
    """Whether the gate is 0 for every token of every layer.

    gates: layer -> mean gate inside the mask, mean outside, share of the tokens where it is 0.
    """
    return bool(gates) and all(dead >= 1 for _, _, dead in gates.values())
