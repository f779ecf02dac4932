"""Trackers (tensorboard, wandb): the curves of a running training.

Imports nothing heavy, so that a missing tracker is reported before the heavy imports.
"""

import contextlib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from eqdiff.errors import UserError
from eqdiff.ours import CURVES

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = "curves"  # tensorboard's files: <output_dir>/curves
PROJECT = {
    "tensorboard": FOLDER,
    "wandb": "eqdiff",
}  # a folder for the one, a project for the other


NESTED = ("step", "gate", "mean", "by_t")  # no curve by themselves


def require_tracker(name: str) -> None:
    """Raises UserError if the tracker's package is not installed. "none" needs none."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(
            f"--report_to {name}: it is not installed; run: pip install {name}, "
            "or set --report_to none"
        )


def start_trackers(
    accelerator: "Accelerator", name: str, folder: Path, settings: Mapping[str, Any]
) -> None:
    """Opens the tracker of a training whose results go to `folder`.

    settings: what wandb shows beside the curves.
    """
    if name == "none":
        return

    options = {
        "wandb": {
            "dir": str(folder),
            "name": folder.resolve().name,
            "config": dict(settings),
        },
        "tensorboard": {"filename_suffix": CURVES},
    }
    with _nameless_host(name):
        accelerator.init_trackers(PROJECT[name], init_kwargs=options)


@contextlib.contextmanager
def _nameless_host(name: str) -> Iterator[None]:
    """Within: tensorboard puts no host's name into the name of its file, which is passed on."""
    if name != "tensorboard":
        yield
        return
    with mock.patch("tensorboard.summary.writer.event_file_writer.socket") as socket:
        socket.gethostname.return_value = "host"
        yield


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The curves of a line of log.jsonl: its numbers except the step.

    The running means are "mean/<loss>", and "by_t/<band>" for the diffusion loss by timestep.

    Of the gate, which is given by layer (inside, outside, dead share), they are the means over the
    layers that have one.
    """
    curves = {name: float(value) for name, value in row.items() if name not in NESTED}
    for kind in ("mean", "by_t"):
        curves |= {f"{kind}/{name}": value for name, value in row.get(kind, {}).items()}

    gates = row.get("gate", {}).values()
    for place, name in enumerate(("inside", "outside", "dead")):
        known = [gate[place] for gate in gates if not math.isnan(gate[place])]
        if known:
            curves[f"gate/{name}"] = sum(known) / len(known)
    return curves
