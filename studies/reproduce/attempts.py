"""One try of a cell, in a process of its own, whichever engine asks for it."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from eqdiff.process.launched import LAUNCHED
from eqdiff.wording import clean
from studies.reproduce.cell import ROW, Cell, Row
from studies.scripts import ROOT

LOG = "log.txt"
# what torchrun tells this process, and a training started from here must not hear
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
RANKS += ("MASTER_ADDR", "MASTER_PORT")
LONGEST = 300  # characters of a last line
REAL = "studies.reproduce.attempts:run"  # a test may name a quicker one

Runner = Callable[[Cell, Path], Row]


class CellFailed(Exception):
    """A try of a cell that failed; the message is its last line."""


def run(cell: Cell, folder: Path) -> Row:
    """Runs a cell in a folder, and returns its row. Its output goes into folder/log.txt.

    The process ends with this one, even if this one is killed. Raises CellFailed if it fails.
    """
    file = folder / "cell.json"
    file.write_text(json.dumps(dataclasses.asdict(cell)), encoding="utf-8")
    command = [sys.executable, "-m", "studies.reproduce.cell", str(file), str(folder)]
    with (folder / LOG).open("w", encoding="utf-8") as log:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(cell.threads),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    row = folder / ROW
    if done.returncode or not row.is_file():
        raise CellFailed(last_line(folder / LOG) or f"exit status {done.returncode}")
    return json.loads(row.read_text(encoding="utf-8"))


def environment(threads: int) -> dict[str, str]:
    """For the process of a cell: its number of threads, and that it follows this one."""
    own = {name: value for name, value in os.environ.items() if name not in RANKS}
    number = str(threads)
    path = [str(ROOT), *filter(None, [own.get("PYTHONPATH")])]
    own |= {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number, LAUNCHED: str(os.getpid())}
    return own | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUTF8": "1"}


def last_line(log: Path) -> str:
    """The last line of a log that says something, cleaned."""
    if not log.is_file():
        return ""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return clean((errors or lines or [""])[-1])[:LONGEST]


def runner(name: str) -> Runner:
    """The function "module:function" that runs a cell in a folder."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
