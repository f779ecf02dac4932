"""Engines: who runs a cell does not matter, nobody runs it twice, a kill loses nothing."""

import importlib.util
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import stub_cells
from stub_cells import a_cell

from eqdiff.errors import UserError
from studies.reproduce import claims, engine_local, engine_ray
from studies.reproduce import store as store_module
from studies.reproduce.attempts import CellFailed, last_line, run
from studies.reproduce.cell import Cell
from studies.reproduce.store import Store, result_of, seal, sealed

STUB = "stub_cells:run"
KILLS = 10
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: requirements-ray.txt"
)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """How often each cell ran to its end so far. Workers find the stub."""
    folder = tmp_path / "counts"
    folder.mkdir()
    monkeypatch.setenv(stub_cells.COUNTS, str(folder))
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return lambda: {file.stem: len(file.read_text().split()) for file in folder.glob("*.txt")}


def results(store: Store) -> list[dict[str, Any]]:
    return [result_of(row) for row in store.rows().values()]


def serial(folder: Path, cells: list[Cell]) -> list[dict[str, Any]]:
    """What the cells give, one after another in this process."""
    store = Store(folder)
    engine_local.work(store, cells, ("pictures",), stub_cells.run)
    store.gather()
    return results(store)


@pytest.mark.slow
def test_processes_share_the_cells_and_none_is_run_twice(
    tmp_path: Path, counted: Callable[[], dict[str, int]]
) -> None:
    cells = [a_cell(number) for number in range(8)]
    store = Store(tmp_path / "many")
    engine_local.run(store, cells, lambda: None, processes=3, kinds=("pictures",), how=STUB)
    assert list(counted().values()) == [1] * 8
    assert results(store) == serial(tmp_path / "one", cells)
    assert store.file.read_bytes().count(b"\n") == 8
    kept = store.kept(cells[0].key) / "images" / "0.png"
    assert kept.read_bytes() == cells[0].key.encode()
    assert not list((store.work / "attempts").iterdir())


@pytest.mark.slow
def test_processes_killed_at_random_lose_no_cell(
    tmp_path: Path, counted: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes, kill -9 of one at random ten times: the same rows."""
    monkeypatch.setenv(stub_cells.SECONDS, "0.4")
    cells = [a_cell(number) for number in range(16)]
    store = Store(tmp_path / "many")
    draws = random.Random(0)
    killed: list[int] = []

    def kill_one() -> None:
        workers = [
            child for child in psutil.Process().children() if "engine_local" in _words(child)
        ]
        working = [child for child in workers if time.time() - child.create_time() > 1.0]
        if len(killed) < KILLS and working:
            victim = draws.choice(working)
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.pid)

    engine_local.run(store, cells, kill_one, processes=4, kinds=("pictures",), how=STUB)
    ends = counted()
    assert len(killed) == KILLS, "the cells ended before all kills: make them longer"
    assert len(ends) == 16 and sum(ends.values()) <= 16 + KILLS
    monkeypatch.setenv(stub_cells.SECONDS, "0")
    assert results(store) == serial(tmp_path / "one", cells)


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_cell_that_always_fails_is_tried_three_times_and_the_rest_goes_on(
    tmp_path: Path, counted: Callable[[], dict[str, int]]
) -> None:
    cells = [a_cell(0), a_cell(1, subject="fails"), a_cell(2)]
    store = Store(tmp_path / "out")
    engine_local.work(store, cells, (), stub_cells.run)
    store.gather()
    assert set(store.rows()) == {cells[0].key, cells[2].key}
    assert store.failures(cells[1].key) == ["error: it never works"] * 3
    assert store.given_up(cells[1].key) == "error: it never works"
    store.pardon([cells[1].key])
    assert store.given_up(cells[1].key) is None


def test_a_cell_whose_process_is_killed_again_and_again_is_given_up(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    for _ in range(store_module.KILLS):
        assert store.given_up("k") is None
        store.begin("k")
    assert "killed 8 times" in (store.given_up("k") or "")


def test_a_worker_that_breaks_is_said_and_not_started_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"worker 0 ended with status 1: .*no_such_module"):
        engine_local.run(store, [a_cell(0)], lambda: None, processes=1, how="no_such_module:run")


def test_a_disk_without_exclusive_creation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "out")
    store.require_exclusive()
    real = os.open

    def forgetful(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        return real(path, flags & ~os.O_EXCL, *args, **kwargs)

    monkeypatch.setattr(store_module.os, "open", forgetful)
    with pytest.raises(UserError, match="cannot be shared out there; name a folder on another"):
        store.require_exclusive()
    monkeypatch.setattr(store_module.os, "open", real)
    assert not list(store.work.glob("probe*"))


def test_a_claim_is_one_processes_and_that_of_a_silent_one_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LEASE", 0.5)
    one, two = Store(tmp_path), Store(tmp_path)
    with one.claimed("k") as mine:
        with two.claimed("k") as others:
            assert mine and not others
        heart = one.claims._leases["k"]._claim.heartbeat
        time.sleep(0.8)  # a claim that is refreshed stands
        with two.claimed("k") as others:
            assert not others
        heart.stop.set()  # from here on its holder is silent
        deadline = time.monotonic() + 10
        taken = False
        while not taken and time.monotonic() < deadline:
            with two.claimed("k") as taken:
                time.sleep(0.05)
        assert taken


def test_a_claim_whose_process_was_killed_before_it_wrote_its_name_stands_for_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cell, and on the file of all rows."""
    monkeypatch.setattr(claims, "TORN", 0.3)
    store = Store(tmp_path)
    engine_local.work(store, [a_cell(0)], (), stub_cells.run)
    for name in ("k", "gather"):
        (store.work / "claims" / f"{name}.claim").touch()

    with store.claimed("k") as mine:
        assert not mine  # it may be a process that is about to write
    time.sleep(0.4)
    with store.claimed("k") as mine:
        assert mine
    assert len(store.gather()) == 1
    assert not list((store.work / "claims").iterdir())


def test_rows_that_a_killed_run_left_are_gathered_and_a_torn_line_counts_as_not_written(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "out")
    for number in range(3):
        engine_local.work(store, [a_cell(number)], (), stub_cells.run)
    assert not store.file.exists()
    assert len(Store(tmp_path / "out").gather()) == 3

    whole = store.file.read_text()
    store.file.write_text(whole[:-30])
    assert len(store.rows()) == 2
    store.file.write_text("torn\n" + whole)
    with pytest.raises(UserError, match="cells.jsonl, line 1: no row of a cell"):
        store.rows()


def test_forgotten_cells_are_gone_with_what_was_kept_of_them(tmp_path: Path) -> None:
    cells = [a_cell(0), a_cell(1)]
    store = Store(tmp_path / "out")
    engine_local.work(store, cells, ("pictures",), stub_cells.run)
    store.gather()
    store.forget([cells[0].key])
    assert set(store.rows()) == {cells[1].key}
    assert not store.kept(cells[0].key).exists() and store.kept(cells[1].key).exists()
    assert not store.done(cells[0].key) and store.done(cells[1].key)


def test_a_seal_is_of_all_that_a_row_says(tmp_path: Path) -> None:
    row = sealed({"key": "k", "rows": [{"clip_t": 0.5}]})
    assert seal(row) == row["seal"]
    row["rows"][0]["clip_t"] = 0.6
    assert seal(row) != row["seal"]


def test_the_last_line_of_a_cell_that_fails_is_its_error(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("50%\r100%\nerror: no photos; add some\n  leaked semaphore\n")
    assert last_line(log) == "error: no photos; add some"
    log.write_text("Traceback\nKeyError: 'x'\n\n")
    assert last_line(log) == "KeyError: 'x'"


@pytest.mark.long
def test_a_real_cell_that_cannot_be_trained_fails_with_the_trainings_line(tmp_path: Path) -> None:
    with pytest.raises(CellFailed, match="error: --instance_data_dir photos: there is no"):
        run(a_cell(0), tmp_path)


# -- Ray -------------------------------------------------------------------------------------------


def test_without_ray_one_line_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -r requirements-ray.txt"):
        engine_ray.require_ray()


def test_what_a_task_gives_back_is_the_row_and_what_is_kept(tmp_path: Path) -> None:
    """Run here as a node runs it: photos come as bytes, pictures go as bytes."""
    photos = {"00.png": b"photo", "masks/00.png": b"mask"}
    seen: list[Path] = []

    def look(cell: Cell, folder: Path) -> dict[str, Any]:
        seen.extend(path for path in Path(cell.photos).rglob("*.png"))
        return stub_cells.run(cell, folder)

    module = SimpleNamespace(look=look)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_ray, "runner", lambda name: getattr(module, name))
        row, files, failure = engine_ray.in_task(a_cell(0), photos, ("pictures",), "look")
        lost = engine_ray.in_task(a_cell(0, subject="fails"), photos, (), "look")
    assert sorted(path.name for path in seen) == ["00.png", "00.png"] * 2
    assert row["key"] == a_cell(0).key and not failure
    assert files == {"samples/images/0.png": a_cell(0).key.encode()}
    assert lost == (None, {}, "error: it never works")


def on_two_nodes(tmp_path: Path, count: int) -> tuple[Store, list[Cell]]:
    """Cells on two loopback nodes of one CPU each, of which one is killed in the middle."""
    from ray.cluster_utils import Cluster

    cells = [a_cell(number) for number in range(count)]
    store = Store(tmp_path / "ray")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    lost: list[Any] = []

    def kill_second() -> None:
        ended = len(store.rows())
        if not lost and ended >= count // 4:
            lost.append(second)
            cluster.remove_node(second, allow_graceful=False)

    try:
        engine_ray.run(
            store, cells, kill_second, address=cluster.address, kinds=("pictures",), how=STUB
        )
    finally:
        cluster.shutdown()
    assert lost
    return store, cells


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.long)])
def test_a_cluster_that_loses_a_node_gives_what_one_process_gives(
    tmp_path: Path,
    counted: Callable[[], dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    monkeypatch.setenv(stub_cells.SECONDS, "1.0")
    store, cells = on_two_nodes(tmp_path, count)
    ends = counted()
    assert len(ends) == count and sum(ends.values()) <= count + 1  # of the lost node at most one
    monkeypatch.setenv(stub_cells.SECONDS, "0")
    assert results(store) == serial(tmp_path / "one", cells)


@needs_ray
@pytest.mark.long
def test_on_ray_a_cell_that_always_fails_is_named_and_the_rest_is_there(
    tmp_path: Path, counted: Callable[[], dict[str, int]]
) -> None:
    cells = [a_cell(0), a_cell(1, subject="fails")]
    store = Store(tmp_path / "ray")
    engine_ray.run(store, cells, lambda: None, kinds=(), how=STUB)
    assert set(store.rows()) == {cells[0].key}
    assert store.failures(cells[1].key) == ["error: it never works"] * 3


@needs_ray
def test_a_cluster_that_is_not_there_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--address 127.0.0.1:1: no Ray cluster there"):
        engine_ray.run(Store(tmp_path), [a_cell(0)], lambda: None, address="127.0.0.1:1")
