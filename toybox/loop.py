"""The training loop that the toybox's trainings share, and its parts.

accelerate, Muon, a cosine rate, an average of the weights, a budget of wall-clock time.
"""

import argparse
import json
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
from toybox.schedule import cosine, warm_up

MATRIX_RATE = 2.0  # the rate of matrices, in learning rates
LOG_STEPS = 100


@dataclass(frozen=True)
class Budget:
    """Training ends at `steps` or after `minutes`, whichever comes first.

    The rate follows the one that is nearer its end.
    """

    steps: int
    minutes: float
    learning_rate: float
    warmup: int = 100  # steps
    ema_decay: float = 0.999
    save_minutes: float = 20.0


def add_arguments(
    parser: argparse.ArgumentParser, *, steps: int, minutes: float, rate: float, batch: int
) -> None:
    """Adds the flags that every training has, with its own defaults."""
    data = Path("runs/toybox/data")
    parser.add_argument("--data", type=Path, default=data, metavar="DIR", help="drawn pictures")
    parser.add_argument(
        "--assets",
        type=Path,
        default=Path("assets/toybox"),
        metavar="DIR",
        help="folder of the weights",
    )

    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=minutes, help="wall-clock budget")
    parser.add_argument("--learning_rate", type=float, default=rate, help="peak")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="start from the weights in --assets")


def budget(args: argparse.Namespace) -> Budget:
    """The budget that the flags of `add_arguments` give."""
    return Budget(args.steps, args.minutes, args.learning_rate)


def progress_of(step: int, started: float, plan: Budget) -> float:
    """Share of the budget that is used up, 0..1."""
    spent = (time.monotonic() - started) / (60 * plan.minutes)
    return min(1.0, max(step / plan.steps, spent))


def average_of(module: nn.Module, decay: float) -> EMAModel:
    """The exponential average of the module's weights, whose decay rises to `decay`."""
    return EMAModel(module.parameters(), decay=decay, use_ema_warmup=True, power=0.75)


def descend(
    module: nn.Module, optimizer: torch.optim.Optimizer, average: EMAModel, learning_rate: float
) -> None:
    """Takes one step along the gradients of the module's parameters, and clears them.

    optimizer: Muon. Its matrices move at MATRIX_RATE times the learning rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * (MATRIX_RATE if group["muon"] else 1.0)

    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average.step(module.parameters())


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
    """Trains `module`, whose forward(batch) gives named losses; it descends the one named "loss".

    `save` gets the module with averaged weights every `save_minutes` and at the end. It writes
    them, and returns figures for the log (JSON lines: step, minutes, losses or figures).
    """
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    optimizer = Muon(module, lr=plan.learning_rate, weight_decay=1e-2)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    average = average_of(module, plan.ema_decay)
    average.to(accelerator.device)

    main = accelerator.is_main_process
    log.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=plan.steps, desc=log.stem, disable=not main, mininterval=10)
    started = saved = time.monotonic()

    def write(step: int, figures: dict[str, float]) -> None:
        if main:
            minutes = round((time.monotonic() - started) / 60, 2)
            with log.open("a") as file:
                file.write(json.dumps({"step": step, "minutes": minutes, **figures}) + "\n")

    sums: dict[str, Tensor] = {}
    for step in range(plan.steps):
        progress = progress_of(step, started, plan)
        if progress >= 1:
            break

        losses = wrapped(next(batches))
        accelerator.backward(losses["loss"])
        rate = plan.learning_rate * warm_up(step, plan.warmup) * cosine(progress)
        descend(module, optimizer, average, rate)

        sums = {name: sums.get(name, 0) + value.detach() for name, value in losses.items()}
        bar.update()
        if (step + 1) % LOG_STEPS == 0:
            means = {name: round(float(value) / LOG_STEPS, 5) for name, value in sums.items()}
            write(step + 1, means)
            sums = {}
        if time.monotonic() - saved > 60 * plan.save_minutes:
            write(step + 1, with_average(module, average, save))
            saved = time.monotonic()

    write(step + 1, with_average(module, average, save))
    bar.close()
