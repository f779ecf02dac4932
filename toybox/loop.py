"""The training loop that all toybox trainings share: accelerate, Muon, cosine rate, EMA, a wall-clock budget."""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from toybox.muon import Muon


@dataclass(frozen=True)
class Budget:
    """Training ends at `steps` or after `minutes`, whichever is nearer; the rate follows the nearer of both."""

    steps: int
    minutes: float
    learning_rate: float
    matrix_rate: float = 2.0  # of matrices, in learning rates
    warmup: int = 100  # steps
    ema_decay: float = 0.999
    save_minutes: float = 20.0


def add_arguments(parser: argparse.ArgumentParser, *, steps: int, minutes: float, rate: float, batch: int) -> None:
    """The flags that every training has, with its own defaults."""
    parser.add_argument("--data", type=Path, default=Path("runs/toybox/data"), metavar="DIR", help="drawn pictures")
    parser.add_argument("--assets", type=Path, default=Path("assets/toybox"), metavar="DIR", help="where weights live")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=minutes, help="wall-clock budget")
    parser.add_argument("--learning_rate", type=float, default=rate, help="peak")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="start from the weights under --assets")


def budget(args: argparse.Namespace) -> Budget:
    return Budget(args.steps, args.minutes, args.learning_rate)


def progress_of(step: int, started: float, plan: Budget) -> float:
    """Share of the budget that is used up, 0..1."""
    return min(1.0, max(step / plan.steps, (time.monotonic() - started) / (60 * plan.minutes)))


def rate_at(step: int, progress: float, plan: Budget) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
    return plan.learning_rate * min(1.0, (step + 1) / plan.warmup) * cosine


@torch.no_grad()
def with_average(module: nn.Module, average: EMAModel, action: Callable[[nn.Module], Any]) -> Any:
    """Calls action(module) while the module holds its averaged weights."""
    average.store(module.parameters())
    average.copy_to(module.parameters())
    module.eval()
    try:
        return action(module)
    finally:
        module.train()
        average.restore(module.parameters())


def fit(
    module: nn.Module,
    batches: Iterator[Any],
    plan: Budget,
    save: Callable[[nn.Module], dict[str, float]],
    log: Path,
) -> None:
    """Trains `module`, whose forward(batch) gives named losses; "loss" is the one to descend.

    `save` gets the module with averaged weights every `save_minutes` and at the end, writes it, and returns
    figures for the log (JSON lines: step, minutes, losses or figures).
    """
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    optimizer = Muon(module, lr=plan.learning_rate, weight_decay=1e-2)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    average = EMAModel(module.parameters(), decay=plan.ema_decay, use_ema_warmup=True, power=0.75)
    average.to(accelerator.device)
    log.parent.mkdir(parents=True, exist_ok=True)

    def write(step: int, figures: dict[str, float]) -> None:
        if accelerator.is_main_process:
            row = {"step": step, "minutes": round((time.monotonic() - started) / 60, 2), **figures}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")

    started = saved = time.monotonic()
    bar = tqdm(total=plan.steps, desc=log.stem, disable=not accelerator.is_main_process, mininterval=10)
    sums: dict[str, Tensor] = {}
    for step in range(plan.steps):
        progress = progress_of(step, started, plan)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, progress, plan) * (plan.matrix_rate if group["muon"] else 1.0)
        losses = wrapped(next(batches))
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(module.parameters())
        sums = {name: sums.get(name, 0) + value.detach() for name, value in losses.items()}
        bar.update()
        if (step + 1) % 100 == 0:
            write(step + 1, {name: round(float(value) / 100, 5) for name, value in sums.items()})
            sums = {}
        if time.monotonic() - saved > 60 * plan.save_minutes:
            write(step + 1, with_average(module, average, save))
            saved = time.monotonic()
    write(step + 1, with_average(module, average, save))
    bar.close()
