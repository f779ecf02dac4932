"""What trackers (tensorboard, wandb) get of a running training: the numbers of log.jsonl as curves, the preview grids.

Imports nothing heavy, so that a tracker that is not installed is told of before anything is loaded.
"""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqdiff.config import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = "curves"  # tensorboard's files: <output_dir>/curves
PROJECT = {"tensorboard": FOLDER, "wandb": "eqdiff"}  # accelerate's name for a folder here, for a project there


def require_tracker(name: str) -> None:
    """UserError: the tracker's package is not installed. "none" needs none."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--report_to {name}: it is not installed; run: pip install {name}, or set --report_to none")


def start_trackers(accelerator: "Accelerator", name: str, folder: Path, settings: Mapping[str, Any]) -> None:
    """Opens the tracker of a training whose results go to `folder`. settings: what wandb shows beside the curves."""
    if name != "none":
        about = {"dir": str(folder), "name": folder.resolve().name, "config": dict(settings)}
        accelerator.init_trackers(PROJECT[name], init_kwargs={"wandb": about})


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The curves of a line of log.jsonl: its numbers but the step; of the gate, by layer (inside, outside, dead share),
    the means over the layers that have one."""
    found = {name: float(value) for name, value in row.items() if name not in ("step", "gate")}
    for i, place in enumerate(("inside", "outside", "dead")):
        known = [gate[i] for gate in row.get("gate", {}).values() if not math.isnan(gate[i])]
        if known:
            found[f"gate/{place}"] = sum(known) / len(known)
    return found


def show_picture(accelerator: "Accelerator", name: str, path: Path, step: int) -> None:
    """Gives a picture file to every tracker that takes pictures."""
    import numpy as np
    from PIL import Image

    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            with Image.open(path) as picture:
                batch = np.asarray(picture.convert("RGB"))[None]
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: batch}, step=step, **layout)
