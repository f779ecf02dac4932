"""The engine `ray`: cells as tasks of a Ray cluster, which retries them when a node is lost.

A task gets its cell and the subject's photos as bytes, and gives back the row and what is kept as
bytes: no shared disk is needed. Base, CLIP and DINO, and this repository, lie at the same places on
every node. Ray is an extra: pip install -r requirements-ray.txt
"""

import importlib.util
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eqdiff.errors import UserError
from eqdiff.wording import say
from studies.reproduce.attempts import REAL, CellFailed, runner
from studies.reproduce.cell import Cell, Row
from studies.reproduce.engine_local import Report
from studies.reproduce.store import KILLS, PLACES, Store
from studies.scripts import ROOT

BETWEEN_LOOKS = 0.5  # seconds

Files = dict[str, bytes]  # path below a folder -> content


def require_ray() -> None:
    """Raises UserError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "--engine ray: Ray is not installed; pip install -r requirements-ray.txt, "
            "or leave --engine ray out"
        )


def run(
    store: Store,
    cells: Sequence[Cell],
    report: Report,
    *,
    address: str | None = None,
    gpus: float = 0.0,
    kinds: Sequence[str] = (),
    how: str = REAL,
) -> None:
    """Runs cells on the cluster at an address, or on a Ray of this machine alone.

    report: called now and then. gpus: that a cell takes, if the cluster has any. kinds: what of a
    cell is kept. how: the function that runs one.

    Raises UserError if Ray is not installed or the cluster cannot be reached.
    """
    require_ray()
    import ray

    _connect(address)
    try:
        share = gpus if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(max_retries=KILLS, num_gpus=share, num_cpus=1)(in_task)
        photos = {cell.photos: ray.put(read_files(Path(cell.photos))) for cell in cells}

        def submit(cell: Cell) -> Any:
            sized = task.options(num_cpus=cell.threads)
            return sized.remote(cell, photos[cell.photos], tuple(kinds), how)

        pending = {submit(cell): cell for cell in cells}
        while pending:
            ended, _ = ray.wait(list(pending), timeout=BETWEEN_LOOKS)
            for ref in ended:
                cell = pending.pop(ref)
                _take(store, cell, ref)
                if not (store.done(cell.key) or store.given_up(cell.key)):
                    pending[submit(cell)] = cell
            store.gather_new()
            report()
    finally:
        ray.shutdown()
        store.gather_new()
        report()


def _connect(address: str | None) -> None:
    """Joins the cluster, and names its dashboard if it has one."""
    import ray

    _require_answer(address)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"env_vars": {"PYTHONPATH": path}}
    try:
        context = ray.init(
            address=address, runtime_env=env, log_to_driver=False, logging_level="ERROR"
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--address {address}: no Ray cluster there ({reason})") from None
    link = getattr(context, "dashboard_url", None)
    if link:
        say(f"dashboard: http://{link}")


def _require_answer(address: str | None) -> None:
    """Raises UserError if nobody listens at host:port: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--address {address}: no Ray cluster there ({reason}); start one with ray start --head"
        ) from None


def _take(store: Store, cell: Cell, ref: Any) -> None:
    """Keeps what a task gave back, or notes why it gave nothing."""
    import ray

    store.begin(cell.key)
    try:
        row, files, failure = ray.get(ref)
    except ray.exceptions.RayError as error:
        row, files = None, {}
        failure = " ".join(str(error).split())[:300]

    if row is None:
        store.fail(cell.key, failure)
        return
    folder = store.attempt(cell.key)
    write_files(folder, files)
    store.keep(cell.key, folder, [kind for kind in PLACES if (folder / PLACES[kind]).exists()])
    store.discard(folder)
    store.save(row)


def in_task(
    cell: Cell, photos: Files, kinds: tuple[str, ...], how: str
) -> tuple[Row | None, Files, str]:
    """On a node: runs a cell in a folder of its own. Its row, what is kept, why it failed."""
    with tempfile.TemporaryDirectory(prefix="eqdiff-") as place:
        folder = Path(place) / "cell"
        subject = Path(place) / "photos" / Path(cell.photos).name
        folder.mkdir()
        write_files(subject, photos)
        try:
            row = runner(how)(replace(cell, photos=str(subject)), folder)
        except CellFailed as failure:
            return None, {}, str(failure)
        kept = [folder / PLACES[kind] for kind in kinds]
        return row, read_files(folder, kept), ""


def read_files(folder: Path, only: Sequence[Path] | None = None) -> Files:
    """The files below a folder, or those of some files and folders in it."""
    roots = [folder] if only is None else only
    paths = [path for root in roots for path in (root, *root.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_files(folder: Path, files: Files) -> None:
    """The inverse of `read_files`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
