"""Where a study keeps its cells: studies/results/<study>/cells.jsonl, a line of JSON a cell.

Several processes write at the same time, and any of them may be killed. So a writer takes a lock,
reads the file, and puts a whole new one in its place. The kernel frees the lock of a killed
process.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from eqdiff.errors import UserError
from eqdiff.files import replacing

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "studies" / "results"
WORK = ROOT / "outputs" / "studies"  # locks, photos, concepts: made again if they are gone

# what torchrun tells this process, and a training started from here must not hear
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
RANKS += ("MASTER_ADDR", "MASTER_PORT")

Key = tuple[str, str, int]  # variant, subject, seed: one cell of a study
Row = dict[str, Any]  # a cell as it is kept: its settings, its base and, as "rows", its measures


def folder_of(study: str) -> Path:
    """The folder with a study's cells, tables and figure."""
    return RESULTS / study


def cells_file(study: str) -> Path:
    """The file with a study's cells."""
    return folder_of(study) / "cells.jsonl"


def key_of(row: Row) -> Key:
    """What tells a kept cell from the others of its study."""
    return row["variant"], row["subject"], row["seed"]


def read_cells(file: Path) -> list[Row]:
    """The cells of a file, in the order of their keys; none if there is no file.

    A torn last line counts as not written. Raises UserError if any other line is not JSON.
    """
    if not file.exists():
        return []
    rows = []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()

    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{file}, line {number}: not JSON; remove that line") from None

    return sorted(rows, key=key_of)


def add_cell(study: str, row: Row) -> None:
    """Adds a cell to its study's file, in the place of one with the same key.

    Raises UserError if the file cannot be written.
    """
    file = cells_file(study)
    with FileLock(_lock_file(f"results/{study}")):
        others = [other for other in read_cells(file) if key_of(other) != key_of(row)]
        rows = sorted([*others, row], key=key_of)
        with replacing(file, durable=True) as beside:
            beside.write_text("".join(json.dumps(one) + "\n" for one in rows))


def remove_cells(study: str, keys: set[Key]) -> None:
    """Removes cells from a study's file. Raises UserError if the file cannot be written."""
    file = cells_file(study)
    with FileLock(_lock_file(f"results/{study}")):
        kept = [row for row in read_cells(file) if key_of(row) not in keys]
        with replacing(file, durable=True) as beside:
            beside.write_text("".join(json.dumps(row) + "\n" for row in kept))


@contextmanager
def claimed(name: str) -> Iterator[bool]:
    """Whether `name` is this process's own within the block; False at once if another has it."""
    with taken(FileLock(_lock_file(name))) as is_ours:
        yield is_ours


@contextmanager
def taken(lock: BaseFileLock) -> Iterator[bool]:
    """Whether a lock is ours within the block; False at once if another has it."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return

    try:
        yield True
    finally:
        with suppress(OSError):  # the disk may be gone: the work within is not to fail by that
            lock.release()


@contextmanager
def in_turn(name: str) -> Iterator[None]:
    """A block that one process at a time may be in, whatever its study; the others wait."""
    with FileLock(_lock_file(name)):
        yield


def _lock_file(name: str) -> Path:
    file = WORK / "locks" / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
