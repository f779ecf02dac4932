"""Checkpoints: a loadable concept, the optimizer's state and the facts to go on from; safetensors and JSON, no pickle.

A checkpoint is a folder step-N that is written beside, synced and renamed; state.json, written last, has the digests of
the other files, so that a torn one is known. No state of a random generator is in it: every draw of a step comes from
its own generator, made from (seed, step, process). Nor of a schedule: the learning rates are constant.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from eqdiff.concept import Concept, apply, load_concept, save_concept, sync
from eqdiff.concept_file import digest_of
from eqdiff.config import UserError, require
from eqdiff.model import EqDiff
from eqdiff.running import RESUME

LOG = logging.getLogger(__name__)
FORMAT = "eqdiff-checkpoint-1"
STATE = "state.json"
# settings that another part of the same training may have otherwise: what is kept, shown and sampled, and how fast
FREE = {
    "overwrite", "preset", "auto_masks", "max_train_steps", "memory", "gradient_checkpointing", "compile",
    "checkpointing_steps", "checkpoints_total_limit", "validation_steps", "num_validation_images", "report_to",
    "log_steps", "concept_dtype", "embed_reference", "guidance_scale", "num_inference_steps",
}  # fmt: skip


def step_generator(seed: int, step: int, process: int) -> torch.Generator:
    """The generator of one step of one process: resuming needs nothing but the step's number."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4099 + process)


def save_checkpoint(
    folder: Path,
    concept: Concept,
    optimizer: torch.optim.Optimizer,
    named: dict[str, nn.Parameter],
    facts: dict[str, Any],
    limit: int = 0,
) -> None:
    """Writes folder/step-N, then removes the oldest ones beyond `limit` (0: none). facts: config, processes, data.

    UserError: it cannot be written; all others are then as they were.
    """
    final = folder / f"step-{concept.step:06d}"
    beside = _beside(final)
    for left in folder.glob(".step-*.partial"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        save_concept(concept, beside / "concept.safetensors")
        states = {n: optimizer.state[p] for n, p in named.items() if p in optimizer.state}
        tensors = {f"{key}/{n}": value.detach().cpu() for n, state in states.items() for key, value in state.items()}
        save_file({n: t.contiguous() for n, t in tensors.items()}, beside / "optimizer.safetensors")
        files = {path.name: digest_of(path) for path in sorted(beside.iterdir())}
        state = {"format": FORMAT, "step": concept.step, "schedule": "constant", **facts, "files": files}
        (beside / STATE).write_text(json.dumps(state, indent=2))
        _publish(beside, final)
    except (OSError, SafetensorError, UserError) as error:
        raise UserError(
            f"{final}: cannot be written ({error}); free some space, then go on with {_advice(folder)}"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if limit:
        for path in all_checkpoints(folder)[:-limit]:
            gone = _beside(path)
            os.replace(path, gone)
            shutil.rmtree(gone, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _publish(beside: Path, final: Path) -> None:
    """Syncs the folder and what is in it, and renames it; one of that name, which is torn, gives way."""
    for path in [*beside.iterdir(), beside]:
        sync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(beside, final)
    sync(final.parent)


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints under a folder, whole or not, in the order of their steps."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint all of whose files are whole. ValueError: what is wrong with it."""
    try:
        state = json.loads((folder / STATE).read_text())
        files = state["files"] if state["format"] == FORMAT else {}
        if not files or not isinstance(state["step"], int) or not isinstance(state["config"], dict):
            raise ValueError(f"{STATE} is of another version")
        torn = [name for name, digest in files.items() if digest_of(folder / name) != digest]
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if torn:
        raise ValueError(f"{torn[0]} is damaged")
    return state


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint under a folder and its state; those that are not are passed over with a warning."""
    for path in reversed(all_checkpoints(folder)):
        try:
            return path, read_state(path)
        except ValueError as error:
            LOG.warning("%s is passed over: %s", path, error)
    return None


def _advice(folder: Path) -> str:
    """How to go on after an error."""
    found = newest(folder)
    return f"{RESUME} (from {found[0].name})" if found else "a new training: there is no checkpoint"


def last_good(folder: Path) -> str:
    """The newest whole checkpoint in words."""
    found = newest(folder)
    return f"the last good checkpoint is {found[0]}" if found else "there is no checkpoint before it"


def find_checkpoint(wanted: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint and its state: `wanted` itself, or the newest whole one under `folder` for "latest"."""
    if wanted == "latest":
        found = newest(folder)
        require(found, f"{RESUME}: no whole checkpoint under {folder}; start anew without it")
        return found
    try:
        return Path(wanted), read_state(Path(wanted))
    except ValueError as error:
        raise UserError(
            f"--resume_from_checkpoint {wanted}: not a whole checkpoint ({error}); name one of checkpoints/step-*"
        ) from None


def require_same(path: Path, state: dict[str, Any], config: dict[str, Any], processes: int) -> None:
    """UserError: the settings, or the number of processes, would make it another training than the checkpoint's."""
    now = json.loads(json.dumps(config))
    differing = [n for n, value in state["config"].items() if n in now and n not in FREE and now[n] != value]
    if differing:
        name = differing[0]
        more = f" (so do {', '.join(differing[1:])})" if differing[1:] else ""
        raise UserError(
            f"--{name} {now[name]} differs from the checkpoint's {state['config'][name]}{more}: give {path}'s own "
            "settings, or start anew with --overwrite"
        )
    require(
        processes == state["processes"],
        f"{path} is of a training in {state['processes']} processes, not {processes}: run as many, or start anew",
    )
    require(
        state["step"] <= config["max_train_steps"],
        f"--max_train_steps {config['max_train_steps']}: {path} is at step {state['step']}; give at least that",
    )


@torch.no_grad()
def load_checkpoint(
    folder: Path, model: EqDiff, optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]
) -> None:
    """Puts a checkpoint back. UserError: damaged, or of another training."""
    try:
        tensors = load_file(folder / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged ({error}); resume from an earlier checkpoint") from None
    concept = load_concept(folder / "concept.safetensors")
    require(
        concept.base_fingerprint == model.base_fingerprint,
        f"{folder}: of a training on the base {concept.base_name}; name it with --pretrained_model_name_or_path",
    )
    apply(concept, model)
    split = {full: full.split("/", 1) for full in tensors}
    strange = {name for _, name in split.values()} ^ set(named)
    require(not strange, f"{folder}: of another training ({min(strange, default='')}); give its own settings")
    for full, (key, name) in split.items():
        optimizer.state[named[name]][key] = tensors[full].to(named[name].device)
