"""Fixtures: a Stable Diffusion 1.x with tiny random weights and a subject folder, both made on the spot."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import make_base, make_subject

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network; read when the hub's client is imported
torch.set_num_threads(1)  # tiny tensors: more threads only cost


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny base. Read only."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny subject. Read only."""
    return make_subject(tmp_path_factory.mktemp("subject") / "disc")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have recorded (`record_property`) is shown: docs/reliability.md has its figures from there."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"figure: {name}: {value}")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same state of torch's global generator and leaves it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
