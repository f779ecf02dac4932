"""Fixtures: a Stable Diffusion 1.x with tiny random weights and a subject folder, both made on the
spot."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny import make_base, make_subject, only_configuration

if TYPE_CHECKING:
    from helpers import Server

    from eqdiff.concept.concept import Concept

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # no test asks the network; read when the hub's client is imported
)
# Under nohup the first is ignored, in the background of a script the others, and so by every child.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny tensors: more threads only cost

# marks of tests that take their time, the heaviest first, and what runs them
RUN_BY = {"long": "bash scripts/check.sh --long", "slow": "bash scripts/check.sh"}
LEFT_OUT: dict[str, Counter[str]] = {mark: Counter() for mark in RUN_BY}  # how many of which file


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny base. Read only."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny subject. Read only."""
    return make_subject(tmp_path_factory.mktemp("subject") / "disc")


@pytest.fixture(scope="module")
def plain(tiny_base: Path, tiny_subject: Path) -> "Concept":
    """A tiny Custom Diffusion."""
    from helpers import trained_concept

    return trained_concept(tiny_base, tiny_subject, rra=False, ra_loss_weight=0.0)


@pytest.fixture(scope="module")
def attending(tiny_base: Path, tiny_subject: Path) -> "Concept":
    """A tiny EqDiff with open gates."""
    from helpers import trained_concept

    return trained_concept(tiny_base, tiny_subject, gate_init="identity")


@pytest.fixture(scope="session")
def forks() -> Iterator["Server"]:
    """Runs our programs, or copies of them, as tests/forks.py does."""
    from helpers import Server

    server = Server("forks.py")
    yield server
    server.end()


@pytest.fixture
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's trainings keep their latents in `tmp_path/cache`, and see no GPU."""
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def base_copy(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base to spoil."""
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


@pytest.fixture
def configuration(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny base without its weights, named by EQDIFF_BASE_CONFIG."""
    folder = only_configuration(tiny_base, tmp_path / "configuration")
    monkeypatch.setenv("EQDIFF_BASE_CONFIG", str(folder))
    return folder


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    """A training that a signal stops leaves all signals ignored, since its process ends."""
    before = {each: signal.getsignal(each) for each in signal.valid_signals()}
    yield
    for each, handler in before.items():
        if handler is not None and signal.getsignal(each) != handler:
            signal.signal(each, handler)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Counts the tests that are left out for the time they take."""
    for item in items:
        marks = [mark for mark in LEFT_OUT if item.get_closest_marker(mark)]
        for mark in marks[:1]:
            LEFT_OUT[mark][item.path.stem] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist hands over what it has counted."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = {m: dict(c) for m, c in LEFT_OUT.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Takes over what a process of pytest-xdist has counted: each of them counts all tests."""
    for mark, files in getattr(node, "workeroutput", {}).get("left_out", {}).items():
        LEFT_OUT[mark] = Counter(files)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says in a line for each mark what was left out, then what tests have recorded.

    docs/reliability.md has its figures from there.
    """
    for mark, files in LEFT_OUT.items():
        if total := files.total():
            names = ", ".join(
                f"{file.removeprefix('test_')} {number}" for file, number in files.items()
            )
            terminalreporter.write_line(
                f"left out: {total} {mark} tests ({names}); {RUN_BY[mark]} runs them"
            )
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"figure: {name}: {value}")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same state of torch's global generator and leaves it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
