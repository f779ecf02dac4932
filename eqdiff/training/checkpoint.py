"""Checkpoints: a loadable concept, the optimizer's state and what is needed to go on. No pickle.

A checkpoint is a folder step-N of safetensors and JSON. It is written under another name, synced
and renamed. state.json is written last and has the digests of the other files, so that a torn
checkpoint is recognised. It holds no state of a random generator: every draw of a step comes from
its own generator, made from (seed, step, process). Nor does it hold a schedule: the learning rates
are constant.
"""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eqdiff.concept.checks import digest_of
from eqdiff.concept.concept import Concept, apply, require_same_base
from eqdiff.concept.file import load_concept, save_concept
from eqdiff.errors import UserError, require
from eqdiff.files import sync
from eqdiff.model import Customized
from eqdiff.ours import CHECKPOINT, remove
from eqdiff.settings.groups import FREE
from eqdiff.settings.options import names_of
from eqdiff.settings.train import TrainConfig
from eqdiff.training.stop import RESUME

LOG = logging.getLogger(__name__)
FORMAT = "eqdiff-checkpoint-1"
CONCEPT = "concept.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter
VALUE = "value"  # what is kept of a parameter that is trained and not the concept's
PARTS = (*CHECKPOINT, f".{CONCEPT}.partial")  # of a checkpoint that is being written

State = dict[str, Any]  # the content of state.json


def step_generator(seed: int, step: int, process: int) -> torch.Generator:
    """The generator of one step of one process: resuming needs only the step's number."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4099 + process)


def save_checkpoint(
    folder: Path,
    concept: Concept,
    optimizer: torch.optim.Optimizer,
    named: dict[str, nn.Parameter],
    facts: dict[str, Any],
    limit: int = 0,
) -> None:
    """Writes folder/step-N, then removes the oldest ones beyond `limit` (0: none).

    named: the trained parameters; those that are not the concept's are kept beside the optimizer.
    facts: config, processes, data.

    Raises UserError if it cannot be written; all others are then as they were.
    """
    final = folder / f"step-{concept.step:06d}"
    beside = final.with_name(f".{final.name}.partial")
    for leftover in folder.glob(".step-*.partial"):  # of a run that was killed
        with suppress(OSError):
            remove(leftover, PARTS)

    try:
        save_concept(concept, beside / CONCEPT)
        aids = {f"{VALUE}/{n}": p for n, p in named.items() if n not in concept.parameters}
        kept = {name: value.detach().cpu().contiguous() for name, value in aids.items()}
        save_file(kept | _optimizer_tensors(optimizer, named), beside / OPTIMIZER)
        _write_state(beside, concept.step, facts)
        _publish(beside, final)
    except (OSError, SafetensorError, UserError) as error:
        raise UserError(
            f"{final}: cannot be written ({error}); "
            f"free some space, then go on with {_advice(folder)}"
        ) from None
    finally:
        with suppress(OSError):
            remove(beside, PARTS)

    if limit:
        for path in all_checkpoints(folder)[:-limit]:
            remove(path, CHECKPOINT)


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's state as "<key>/<parameter's name>" -> tensor on the CPU."""
    tensors = {}
    for name, parameter in named.items():
        if parameter in optimizer.state:
            for key, value in optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    return tensors


def _write_state(folder: Path, step: int, facts: dict[str, Any]) -> None:
    """Writes state.json with the digests of the files that are in the folder."""
    files = {path.name: digest_of(path) for path in sorted(folder.iterdir())}
    state = {
        "format": FORMAT,
        "step": step,
        "schedule": "constant",
        **facts,
        "files": files,
    }
    (folder / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")


def _publish(beside: Path, final: Path) -> None:
    """Syncs the folder and its files, and renames it; a torn checkpoint of that name gives way.

    Where others' files lie in the torn one (pictures drawn from it), the new files are moved to
    them, state.json last.
    """
    for path in [*beside.iterdir(), beside]:
        sync(path)

    if final.exists():
        remove(final, CHECKPOINT)
    if final.exists():
        for name in reversed(CHECKPOINT):
            os.replace(beside / name, final / name)
        sync(final)
    else:
        os.replace(beside, final)
    sync(final.parent)


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints under a folder, whole or not, in the order of their steps."""
    steps = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    written = [path for path in steps if any((path / name).exists() for name in CHECKPOINT)]
    return sorted(written, key=lambda path: int(path.name[5:]))


def read_state(folder: Path) -> State:
    """state.json of a checkpoint. Raises ValueError unless it is ours and all files are whole."""
    file = folder / STATE
    try:
        state = json.loads(file.read_bytes()) if file.is_file() else {}
        _require_state(state)
        files = state["files"].items()
        torn = [name for name, digest in files if digest_of(folder / name) != digest]
    except (OSError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None

    if torn:
        raise ValueError(f"{torn[0]} is damaged")
    return state


def _require_state(state: Any) -> None:
    """Raises ValueError unless this is what `_write_state` writes, of any settings."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{STATE} is missing, or of another version")

    kinds = {"step": int, "processes": int, "config": dict, "data": dict, "files": dict}
    wrong = [name for name, kind in kinds.items() if type(state.get(name)) is not kind]
    wrong += [name for name in ("step", "processes") if name not in wrong and state[name] < 1]
    if not wrong and set(state["files"]) != {CONCEPT, OPTIMIZER}:
        wrong.append("files")
    if wrong:
        raise ValueError(f"{STATE} was edited, see its {wrong[0]!r}")


def newest(folder: Path) -> tuple[Path, State] | None:
    """The newest whole checkpoint under a folder, with its state. Warns of torn ones."""
    for path in reversed(all_checkpoints(folder)):
        try:
            return path, read_state(path)
        except ValueError as error:
            LOG.warning("%s is passed over: %s", path, error)
    return None


def _advice(folder: Path) -> str:
    """How to go on after an error."""
    whole = newest(folder)
    return f"{RESUME} (from {whole[0].name})" if whole else "a new training: there is no checkpoint"


def last_good(folder: Path) -> str:
    """The newest whole checkpoint in words."""
    whole = newest(folder)
    if whole is None:
        return "there is no checkpoint before it"
    return f"the last good checkpoint is {whole[0]}"


def find_checkpoint(named: str, folder: Path) -> tuple[Path, State]:
    """A checkpoint and its state.

    named: its folder, or "latest" for the newest whole one under `folder`.

    Raises UserError if there is none, or the named one is not whole.
    """
    if named == "latest":
        whole = newest(folder)
        require(whole, f"{RESUME}: no whole checkpoint under {folder}; start anew without it")
        return whole

    try:
        return Path(named), read_state(Path(named))
    except ValueError as error:
        raise UserError(
            f"--resume_from_checkpoint {named}: not a whole checkpoint ({error}); "
            "name one of checkpoints/step-*"
        ) from None


def require_same(path: Path, state: State, config: dict[str, Any], processes: int) -> None:
    """Raises UserError if the checkpoint `path` belongs to another training than this.

    config: this training's settings, of which some may differ (see FREE). processes: how many run
    together now.
    """
    now = json.loads(json.dumps(config))
    free = names_of(TrainConfig, FREE)
    compared = {name: value for name, value in state["config"].items() if name in now}
    differing = [
        name for name, value in compared.items() if name not in free and now[name] != value
    ]

    if differing:
        name = differing[0]
        more = f" (so do {', '.join(differing[1:])})" if differing[1:] else ""
        raise UserError(
            f"--{name} {now[name]} differs from the checkpoint's {state['config'][name]}{more}: "
            f"give {path}'s own settings, or start anew with --overwrite"
        )
    require(
        processes == state["processes"],
        f"{path} is of a training in {state['processes']} processes, not {processes}: "
        "run as many, or start anew",
    )
    require(
        state["step"] <= config["max_train_steps"],
        f"--max_train_steps {config['max_train_steps']}: {path} is at step {state['step']}; "
        "give at least that",
    )


@torch.no_grad()
def load_checkpoint(
    folder: Path,
    step: int,
    model: Customized,
    optimizer: torch.optim.Optimizer,
    named: dict[str, nn.Parameter],
) -> None:
    """Restores the weights and the optimizer's state from a checkpoint.

    step: what its state says.

    Raises UserError if it is damaged, or belongs to another training.
    """
    try:
        tensors = load_file(folder / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged ({error}); resume from an earlier checkpoint") from None

    concept = load_concept(folder / CONCEPT)
    require_same_base(concept, model, folder)
    require(
        concept.step == step,
        f"{folder}: {STATE} was edited, its concept is of step {concept.step}; "
        "resume from an earlier checkpoint",
    )
    apply(concept, model)

    expected = {f"{key}/{name}": (key, name) for name in named for key in MOMENTS}
    aids = [name for name in named if name not in concept.parameters]
    expected |= {f"{VALUE}/{name}": (VALUE, name) for name in aids}
    strange = expected.keys() ^ tensors.keys()
    require(
        not strange,
        f"{folder}: of another training ({min(strange, default='')}); give its own settings",
    )
    for full, (key, name) in expected.items():
        parameter = named[name]
        shape = () if key == "step" else parameter.shape
        fits = tensors[full].shape == shape and bool(tensors[full].isfinite().all())
        require(fits, f"{folder}: damaged ({full}); resume from an earlier checkpoint")
        if key == VALUE:
            parameter.copy_(tensors[full])
        else:
            optimizer.state[parameter][key] = tensors[full].to(parameter.device)
