"""A base's noise schedule, whatever scheduler its author drew with, and the samplers made of it.

Of a base's scheduler_config.json the schedule itself is taken: betas, what the UNet predicts, where
the timesteps lie. The author's scheduler class is not loaded: some need packages that are not
there, and the sampler is chosen by `--scheduler`.

Axes: T timesteps of the schedule.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from eqdiff.errors import UserError, reason_of, require

# --scheduler -> its class, and what holds whatever a base's own scheduler says. The solvers of
# stochastic equations ("sde-...") draw noise of their own, so that pictures would not repeat.
SAMPLERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
}
KNOWN = {
    key for kind, _ in SAMPLERS.values() for key in inspect.signature(kind.__init__).parameters
}
# as diffusers' own pipeline corrects every scheduler that it is given
CORRECTED = {"clip_sample": False, "steps_offset": 1}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
REFUSALS = (TypeError, ValueError, LookupError, RuntimeError, AssertionError, ImportError)


def noise_schedule(config: Mapping[str, Any], name: str) -> DDIMScheduler:
    """The scheduler of a base's schedule, from the content of its scheduler_config.json.

    name: the base's, for messages.

    Raises UserError if the file holds no schedule that a Stable Diffusion can have.
    """
    settings = {key: value for key, value in config.items() if key in KNOWN} | CORRECTED
    total = settings.get("num_train_timesteps", 1000)
    problem = None if type(total) is int and total > 0 else f"num_train_timesteps is {total!r}"
    try:
        settings |= _own_betas(config)
        scheduler = DDIMScheduler.from_config(settings)
        problem = problem or _problem(scheduler)
    except REFUSALS as error:
        problem = problem or reason_of(error)

    require(
        not problem,
        f"base {name}: its scheduler_config.json cannot be used ({problem}); mend that file, "
        "or name another base",
    )
    return scheduler


def sampler(kind: str, config: Mapping[str, Any]) -> Any:
    """A new sampler of a kind in SAMPLERS, for the schedule in a scheduler's configuration.

    Raises UserError if the configuration asks for what the sampler does not do.
    """
    cls, fixed = SAMPLERS[kind]
    try:
        return cls.from_config(config, **fixed)
    except REFUSALS as error:
        raise UserError(
            f"--scheduler {kind}: it cannot do what the base's scheduler_config.json asks for "
            f"({reason_of(error)}); take another"
        ) from None


def require_steps(scheduler: Any, steps: int, flag: str) -> None:
    """Sets a number of steps. Raises UserError, which names `flag`, if no picture comes of them."""
    total = len(scheduler.alphas_cumprod)
    try:
        scheduler.set_timesteps(steps)
    except REFUSALS as error:
        raise UserError(
            f"{flag} {steps}: the base's schedule has {total} timesteps ({reason_of(error)}); "
            "take fewer steps"
        ) from None

    visited = torch.as_tensor(scheduler.timesteps).round().long()
    last = int(visited.max())
    require(
        last < total,
        f"{flag} {steps}: the first would be timestep {last}, and the base's schedule ends with "
        f"{total - 1}; take fewer steps",
    )
    is_nothing = bool((scheduler.alphas_cumprod[visited] == 0).any())
    require(
        not (is_nothing and scheduler.config.prediction_type == "epsilon"),
        f"{flag} {steps}: the base's scheduler_config.json says rescale_betas_zero_snr, so that "
        f"nothing of the picture is left at timestep {last}, and prediction_type epsilon, which "
        "cannot begin there: set v_prediction if it was trained so, else timestep_spacing leading",
    )


def alphas_of(scheduler: Any) -> Tensor:
    """alpha_bar of each timestep: (T,). Raises UserError if the scheduler has no such schedule."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    kind = type(scheduler).__name__
    require(
        alphas is not None,
        f"{kind}: it has no noise schedule of Stable Diffusion's kind; give the pipeline another "
        "scheduler, e.g. DDIMScheduler",
    )
    return alphas


def _own_betas(config: Mapping[str, Any]) -> dict[str, Any]:
    """The betas of a schedule that the samplers do not know, made by the base's own scheduler."""
    try:
        DDIMScheduler(beta_schedule=config.get("beta_schedule", "linear"), num_train_timesteps=2)
        return {}
    except NotImplementedError:
        own = getattr(diffusers, config["_class_name"])
        return {"trained_betas": own.from_config(config).betas.tolist()}


def _problem(scheduler: DDIMScheduler) -> str | None:
    """What is wrong with a schedule, in words."""
    total = scheduler.config.num_train_timesteps
    alphas = scheduler.alphas_cumprod
    if len(alphas) != total:
        return f"{len(alphas)} betas for {total} timesteps"
    betas = scheduler.betas
    if not ((betas >= 0) & (betas <= 1)).all():
        return f"its betas are {float(betas[0]):g} to {float(betas[-1]):g}, not in 0 to 1"

    if scheduler.config.prediction_type not in PREDICTIONS:
        known = ", ".join(PREDICTIONS)
        return f"prediction_type {scheduler.config.prediction_type}, none of {known}"
    scheduler.set_timesteps(1)  # raises on a spacing that it does not know
    return None
