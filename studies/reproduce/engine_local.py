"""The engine `local`: processes of this machine, and of all that share the folder's disk.

Each process takes the next cell that nobody has claimed. It needs no one to hand cells out, so a
second machine joins by the same command on the same folder.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from eqdiff.errors import main_guard
from eqdiff.files import replacing
from eqdiff.process.launched import LAUNCHED
from studies.reproduce.attempts import REAL, CellFailed, Runner, last_line, runner
from studies.reproduce.cell import Cell
from studies.reproduce.lending import borrow, lend
from studies.reproduce.store import Store
from studies.scripts import ROOT

BETWEEN_LOOKS = 0.3  # seconds

Report = Callable[[], None]


def run(
    store: Store,
    cells: Sequence[Cell],
    report: Report,
    *,
    processes: int,
    gpus: int = 0,
    kinds: Sequence[str] = (),
    how: str = REAL,
) -> None:
    """Runs cells in so many processes, each with a GPU of its own where there are any.

    report: called now and then. kinds: what of a cell is kept. how: the function that runs one. A
    process that is killed is started again; its cell is tried by the next one.

    Raises UserError if the disk cannot hold claims, and RuntimeError if a process fails by itself.
    """
    store.require_exclusive()
    queue = store.work / f"queue-{os.getpid()}-{secrets.token_hex(4)}.json"
    order = {"cells": [dataclasses.asdict(cell) for cell in cells], "kinds": kinds, "how": how}
    with replacing(queue) as beside:
        beside.write_text(json.dumps(order), encoding="utf-8")

    workers = [_start(queue, number, gpus) for number in range(min(processes, len(cells)))]
    try:
        for _ in _until_ended(workers, queue, gpus):
            store.gather_new()
            report()
    finally:
        _end(workers)
        queue.unlink(missing_ok=True)
        store.gather_new()
        report()


def _start(queue: Path, number: int, gpus: int) -> subprocess.Popen:
    """Starts worker `number`. Its output goes beside the queue, its GPU is its own."""
    env = {**os.environ, LAUNCHED: str(os.getpid())}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = str(number % gpus)

    command = [sys.executable, "-m", "studies.reproduce.engine_local", str(queue)]
    with _log_of(queue, number).open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _log_of(queue: Path, number: int) -> Path:
    return queue.with_name(f"worker-{number}.log")


def _until_ended(workers: list[subprocess.Popen], queue: Path, gpus: int) -> Iterator[None]:
    """Looks after the workers until all have ended; the killed ones are started again.

    Raises RuntimeError with the last line of one that failed.
    """
    while True:
        codes = [worker.poll() for worker in workers]
        for number, code in enumerate(codes):
            if code is not None and code < 0:
                workers[number] = _start(queue, number, gpus)
            elif code:
                line = last_line(_log_of(queue, number))
                raise RuntimeError(f"worker {number} ended with status {code}: {line}")
        yield
        if all(code == 0 for code in codes):
            return
        time.sleep(BETWEEN_LOOKS)


def _end(workers: Sequence[subprocess.Popen]) -> None:
    """Ends the workers; the process of a cell follows its own."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=30)


def work(store: Store, cells: Sequence[Cell], kinds: Sequence[str], run_cell: Runner) -> None:
    """Runs cells that nobody has claimed until each is done or given up, by whomever."""
    keys = [cell.key for cell in cells]
    pending = dict(zip(keys, cells, strict=True))
    while pending:
        took = False
        for key, cell in list(pending.items()):
            if store.done(key) or store.given_up(key):
                del pending[key]
                continue
            with store.claimed(key) as mine:
                if mine and not (store.done(key) or store.given_up(key)):
                    attempt(store, cell, kinds, run_cell)
                    took = True
        if not took:
            time.sleep(BETWEEN_LOOKS)  # the rest is others', who may be killed


def attempt(store: Store, cell: Cell, kinds: Sequence[str], run_cell: Runner) -> None:
    """Tries a cell once, and keeps its row or notes its failure."""
    key = cell.key
    folder = store.attempt(key)
    borrow(store, cell, folder)
    store.begin(key)
    try:
        row = run_cell(cell, folder)
    except CellFailed as failure:
        store.fail(key, str(failure))
    else:
        store.keep(key, folder, kinds)
        lend(store, cell, row)
        store.save(row)
    finally:
        store.discard(folder)


@main_guard
def main(argv: Sequence[str]) -> None:
    """A worker: runs the cells of a queue's file."""
    queue = Path(argv[0])
    order = json.loads(queue.read_text(encoding="utf-8"))
    store = Store(queue.parent.parent)
    cells = [Cell.of(facts) for facts in order["cells"]]
    work(store, cells, order["kinds"], runner(order["how"]))


if __name__ == "__main__":
    main(sys.argv[1:])
