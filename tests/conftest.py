"""Fixtures: a Stable Diffusion 1.x with tiny random weights and a subject folder, both made on the
spot."""

import faulthandler
import gc
import os
import shutil
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
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
cv2.setNumThreads(1)  # several of OpenCV's on a busy machine wait for one another

# Seconds until what hangs is ended, by its process: a test may take 30 on an idle machine.
HANGS, LONG_HANGS = 600, 7200

# marks of tests that take their time, the heaviest first, and what runs them
RUN_BY = {"long": "bash scripts/check.sh --long", "slow": "bash scripts/check.sh"}
STDERR = pytest.StashKey[int]()  # its number
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless chromium, or the test skips by the name of what is missing."""
    from browsing import chromium

    with chromium() as opened:
        yield opened


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


@pytest.fixture(scope="session")
def filled_cache(
    tiny_base: Path, tiny_subject: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cache with the class images and the latents of a tiny training. Read only."""
    from helpers import run_train, training_words

    folder = tmp_path_factory.mktemp("filled")
    words = training_words(tiny_base, tiny_subject, folder / "out", max_train_steps=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQDIFF_CACHE", str(folder / "cache"))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        run_train([*words, "--report_to", "none"])
    return folder / "cache"


@pytest.fixture
def filled_caches(own_caches: None, filled_cache: Path, tmp_path: Path) -> None:
    """As `own_caches`; what a tiny training would keep there is there already."""
    shutil.copytree(filled_cache, tmp_path / "cache")


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


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A training that a signal stops leaves all signals ignored, since its process ends; Ray leaves
    a handler of its own."""
    before = {each: signal.getsignal(each) for each in signal.valid_signals()}
    yield
    for each, handler in before.items():
        if handler is not None and signal.getsignal(each) != handler:
            signal.signal(each, handler)


def pytest_configure(config: pytest.Config) -> None:
    """Keeps standard error as it is outside of tests, for what is said of a test that hangs."""
    config.stash[STDERR] = os.dup(2)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test that loads a base is slow: it takes half a second at the least, and they are many."""
    if "tiny_base" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Keeps what is imported by now out of garbage collections: they were a tenth of all time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Ends the process of a test that hangs, and says where each of its threads is.

    pytest-xdist then names the test, and goes on in another process.
    """
    seconds = LONG_HANGS if item.get_closest_marker("long") else HANGS
    faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


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
