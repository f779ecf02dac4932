"""Checkpoints: a loadable concept, the optimizer's state and the step; safetensors and JSON, no pickle.

No generator state is needed: every step draws from its own, made from (seed, step, process).
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from eqdiff.concept import Concept, apply, load_concept, save_concept
from eqdiff.config import UserError
from eqdiff.model import EqDiff


def step_generator(seed: int, step: int, process: int) -> torch.Generator:
    """The generator of one step of one process: resuming needs nothing but the step's number."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4099 + process)


def save_checkpoint(
    folder: Path, concept: Concept, optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]
) -> None:
    """Writes folder/step-N beside and renames it, so that a torn one is never taken for whole."""
    final = folder / f"step-{concept.step:06d}"
    beside = folder / f".{final.name}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        save_concept(concept, beside / "concept.safetensors")
        states = {n: optimizer.state[p] for n, p in named.items() if p in optimizer.state}
        tensors = {f"{key}/{n}": value.detach().cpu() for n, state in states.items() for key, value in state.items()}
        save_file({n: t.contiguous() for n, t in tensors.items()}, beside / "optimizer.safetensors")
        (beside / "state.json").write_text(json.dumps({"step": concept.step}))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"{final}: cannot be written ({error}); free some space or use fewer checkpoints") from None


def find_checkpoint(wanted: str, folder: Path) -> Path:
    """The folder of a checkpoint: `wanted` itself, or the newest whole one under `folder` for "latest"."""
    if wanted == "latest":
        whole = sorted(path.parent for path in folder.glob("step-*/state.json"))
        if not whole:
            raise UserError(
                f"--resume_from_checkpoint latest: no checkpoint under {folder}; train with --checkpointing_steps"
            )
        return whole[-1]
    if not (Path(wanted) / "state.json").is_file():
        raise UserError(f"--resume_from_checkpoint {wanted}: not a checkpoint folder; name one of checkpoints/step-*")
    return Path(wanted)


@torch.no_grad()
def load_checkpoint(
    folder: Path, model: EqDiff, optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]
) -> int:
    """Puts a checkpoint back and returns the number of steps done. UserError: damaged, or of another training."""
    try:
        step = json.loads((folder / "state.json").read_text())["step"]
        tensors = load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged ({error}); resume from an earlier checkpoint") from None
    apply(load_concept(folder / "concept.safetensors"), model)
    for full, value in tensors.items():
        key, name = full.split("/", 1)
        if name not in named:
            raise UserError(f"{folder}: of another training ({name} is not trained here); give its own settings")
        on = value if key == "step" else value.to(named[name].device)
        optimizer.state[named[name]][key] = on
    return step
