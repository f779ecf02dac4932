"""The output folder of a training: what may begin or go on there, what a new training clears away."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eqdiff.checkpoint import all_checkpoints, find_checkpoint, newest, require_same
from eqdiff.config import TrainConfig, UserError
from eqdiff.curves import FOLDER
from eqdiff.running import RESUME

CHECKPOINTS = "checkpoints"


def start_point(config: TrainConfig, settings: dict[str, Any], processes: int) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint, with its state, that this training goes on from; None: it begins anew. Changes nothing.

    UserError: the folder holds a concept or an unfinished training that nobody asked to replace, or the checkpoint does
    not fit these settings.
    """
    folder, wanted = Path(config.output_dir), config.resume_from_checkpoint
    if not (config.overwrite or goes_on(config)):
        _require_free(folder)
    if not wanted:
        return None
    path, state = find_checkpoint(wanted, folder / CHECKPOINTS)
    require_same(path, state, settings, processes)
    return path, state


def goes_on(config: TrainConfig) -> bool:
    """Whether this training is the one whose results are in the folder: it resumes from a checkpoint there."""
    wanted, own = config.resume_from_checkpoint, Path(config.output_dir) / CHECKPOINTS
    return bool(wanted) and (wanted == "latest" or Path(wanted).resolve().parent == own.resolve())


def _require_free(folder: Path) -> None:
    found = newest(folder / CHECKPOINTS)
    if (folder / "concept.safetensors").exists():
        go_on = f", {RESUME} to go on from its {found[0].name}" if found else ""
        raise UserError(
            f"{folder} holds a concept already; add --overwrite to replace it{go_on}, or give another --output_dir"
        )
    if found:
        raise UserError(
            f"{folder} holds an unfinished training, at {found[0].name}; add {RESUME} to go on with it, or --overwrite "
            "to start anew"
        )
    if all_checkpoints(folder / CHECKPOINTS):
        raise UserError(f"{folder} holds damaged checkpoints only; add --overwrite to start anew")


def prepare_folder(config: TrainConfig, step: int) -> None:
    """Just before the first step. A training that goes on drops what the log says of steps after `step`; a new one
    removes the former one's log, curves, previews and checkpoints, but not its concept, which the new one replaces."""
    folder = Path(config.output_dir)
    log, former = folder / "log.jsonl", {name: folder / f".{name}.partial" for name in (CHECKPOINTS, FOLDER, "preview")}
    for gone in former.values():  # of a run that was killed right here
        shutil.rmtree(gone, ignore_errors=True)
    if goes_on(config):
        if log.exists():
            write_beside(log, lambda path: path.write_text("".join(_rows_until(log, step))))
        return
    for name, gone in former.items():
        if (folder / name).exists():
            os.replace(folder / name, gone)  # all of it at once: half of another training is nobody's
            shutil.rmtree(gone)
    log.unlink(missing_ok=True)


def _rows_until(log: Path, step: int) -> list[str]:
    """The log's whole lines, up to the first of a later step."""
    kept = []
    for line in log.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:  # torn
            break
        kept.append(line)
    return kept


def write_beside(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` is given the path of a file beside, which then takes its place."""
    beside = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
