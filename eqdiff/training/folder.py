"""The output folder of a training: what must not be in it, what a new training removes from it."""

import json
import re
from pathlib import Path

from eqdiff.data.subject import mask_folder
from eqdiff.errors import UserError
from eqdiff.files import replacing
from eqdiff.ours import FILES, clear, entries, foreign_entry, foreign_file, misplaced, remove
from eqdiff.settings.train import TrainConfig
from eqdiff.training.checkpoint import all_checkpoints, newest
from eqdiff.training.stop import RESUME

CHECKPOINTS = "checkpoints"
MASKS = "masks"
CLEARED = (CHECKPOINTS, "preview", "curves")  # folders that a new training clears


def resumes_in_place(config: TrainConfig) -> bool:
    """Whether the folder holds this very training: it resumes from a checkpoint there."""
    named = config.resume_from_checkpoint
    if not named:
        return False
    own = Path(config.output_dir) / CHECKPOINTS
    return named == "latest" or Path(named).resolve().parent == own.resolve()


def require_free(folder: Path) -> None:
    """Raises UserError if the folder holds a concept or checkpoints of a training."""
    checkpoint = newest(folder / CHECKPOINTS)

    if (folder / "concept.safetensors").exists():
        resume = f", {RESUME} to go on from its {checkpoint[0].name}" if checkpoint else ""
        raise UserError(
            f"{folder} holds a concept already; add --overwrite to replace it{resume}, "
            "or give another --output_dir"
        )

    if checkpoint:
        raise UserError(
            f"{folder} holds an unfinished training, at {checkpoint[0].name}; "
            f"add {RESUME} to go on with it, or --overwrite to start anew"
        )
    if all_checkpoints(folder / CHECKPOINTS):
        raise UserError(f"{folder} holds damaged checkpoints only; add --overwrite to start anew")


def require_ours(config: TrainConfig, folder: Path) -> None:
    """Raises UserError naming the first stranger's thing where this training writes or clears.

    --overwrite lets a training replace files at our names. Other files that are not ours stay,
    except masks, which would be taken for ours: they are refused.
    """
    masks = (MASKS,) if _makes_masks(config, folder) else ()
    wrong = _misplaced(folder, masks)
    if wrong:
        raise UserError(
            f"{wrong}: in the way, a training writes there; move it away, "
            "or give another --output_dir"
        )

    stray = _stray(config, folder, masks)
    if stray:
        anew = "" if stray.parent == folder / MASKS else ", or add --overwrite"
        raise UserError(
            f"{stray}: not written by EqDiff, so it stays; move it, give another --output_dir{anew}"
        )


def _misplaced(folder: Path, masks: tuple[str, ...]) -> Path | None:
    """The first file where a training needs a folder, or folder where it needs a file."""
    files = (*FILES, "concept.safetensors", "README.md")
    wrong = misplaced(folder, (*CLEARED, *masks), files)
    if wrong:
        return wrong

    for path in entries(folder / CHECKPOINTS):
        if re.fullmatch(r"step-\d+", path.name) and not path.is_dir():
            return path
    return None


def _stray(config: TrainConfig, folder: Path, masks: tuple[str, ...]) -> Path | None:
    """The first thing that is not ours, among those that this training may not replace."""
    strays = []
    if not config.overwrite:
        strays.append(foreign_file(folder))
    if not resumes_in_place(config):
        if not config.overwrite:
            strays.append(foreign_entry(folder, CLEARED))
        strays.append(foreign_entry(folder, masks))
    return next(filter(None, strays), None)


def _makes_masks(config: TrainConfig, folder: Path) -> bool:
    """Whether masks may be written into the output folder: not where the user's own are."""
    user_masks = mask_folder(config.instance_data_dir or ".", config.mask_dir)
    return config.auto_masks and user_masks.resolve() != (folder / MASKS).resolve()


def prepare_folder(config: TrainConfig, step: int) -> None:
    """Makes the folder ready, just before the first step.

    A training that resumes here drops the log's lines of steps after `step`. A new one removes the
    previous training's log, curves, previews and checkpoints, but not its concept, which stays
    until the new one replaces it.
    """
    folder = Path(config.output_dir)
    log = folder / "log.jsonl"
    if not resumes_in_place(config):
        clear(folder, CLEARED)
        remove(log)
        return

    if log.exists():
        kept = b"".join(_lines_until(log, step))
        with replacing(log) as beside:
            beside.write_bytes(kept)


def _lines_until(log: Path, step: int) -> list[bytes]:
    """The log's lines up to the first of a later step. Lines that cannot be read are left out."""
    kept = []
    for line in log.read_bytes().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError, RecursionError):  # torn by a kill, or edited
            continue
        kept.append(line + b"\n")
    return kept
