"""Nothing lost: a training that is killed, stopped, or out of disk goes on from its checkpoint, bit for bit."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, flags
from safetensors.torch import load_file

import train_eqdiff
from eqdiff.checkpoint import find_checkpoint, newest

ROOT = Path(__file__).resolve().parent.parent
RESUME = ["--resume_from_checkpoint", "latest"]
STEPS = {"max_train_steps": 5, "checkpointing_steps": 2, "log_steps": 1, "report_to": "none"}


def words(base: Path, subject: Path, out: Path, **changes: object) -> list[str]:
    given = {"pretrained_model_name_or_path": base, "instance_data_dir": subject, "class_word": "dog toy"}
    return flags({**TINY, **STEPS, **given, "output_dir": out, **changes})


def content(out: Path) -> bytes:
    return (out / "concept.safetensors").read_bytes()


def steps_logged(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tiny_subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an uninterrupted training with checkpoints at steps 2 and 4, and its cache. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQDIFF_CACHE", str(folder / "cache"))
        train_eqdiff.main(words(tiny_base, tiny_subject, folder / "out"))
    return folder / "out"


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A copy of it as a kill at the last step would have left it."""
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "out" / "concept.safetensors").unlink()
    return tmp_path / "out"


def refused(capsys: pytest.CaptureFixture, argv: list[str]) -> str:
    """The one line of a refusal with exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train_eqdiff.main(argv)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


# -- killed -----------------------------------------------------------------------------------------------------------


def run_jobs(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "kills.py")]
    done = subprocess.run(command, input=json.dumps(jobs), env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


class Kills:
    """Killed trainings of one kind (processes, batches a step) against the uninterrupted one."""

    def __init__(self, base: Path, subject: Path, folder: Path, processes: int, batches: int) -> None:
        self.folder, self.processes = folder, processes
        self.given = (base, subject)
        self.changes = {"gradient_accumulation_steps": batches}

    def job(self, name: str, *more: str, kill: tuple[int, str, int] | None = None) -> dict[str, Any]:
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        argv = [*words(*self.given, place / "out", **self.changes), *more]
        return {"argv": argv, "cache": str(place / "cache"), "processes": self.processes, "kill": kill}

    def whole(self) -> list[dict[str, int]]:
        """Trains without a kill; the moments that came, by process."""
        (result,) = run_jobs([self.job("whole")])
        assert result["statuses"] == [0] * self.processes, result["said"]
        return result["moments"]

    def check(self, kills: list[tuple[int, str, int]]) -> None:
        """Each kill is survived: the training is offered to be gone on with if there is a checkpoint, else it starts
        over; the concept is the uninterrupted one's, and no step is logged twice."""
        names = [f"{phase}-{rank}-{number}" for rank, phase, number in kills]
        again = [[self.job(name, kill=kill), self.job(name), self.job(name, *RESUME)] for name, kill in zip(
            names, kills, strict=True)]  # fmt: skip
        results = iter(run_jobs([job for jobs in again for job in jobs]))
        for name, (rank, _, _) in zip(names, kills, strict=True):
            killed, plain, resumed = next(results), next(results), next(results)
            out = self.folder / name / "out"
            assert killed["statuses"][rank] == -signal.SIGKILL, (name, killed)
            if set(plain["statuses"]) != {0}:
                assert 2 in plain["statuses"] and "--resume_from_checkpoint latest" in plain["said"][0], (name, plain)
                assert resumed["statuses"] == [0] * self.processes, (name, resumed)
            assert content(out) == content(self.folder / "whole" / "out"), name
            assert steps_logged(out) == [1, 2, 3, 4, 5], name
            assert not list(out.rglob("*.partial*")) and not (out / ".lock").exists(), name


def draw_kills(moments: list[dict[str, int]], phases: dict[str, int], seed: int) -> list[tuple[int, str, int]]:
    """So many seeded random moments of each phase; between steps any process may be the one, else it is the first."""
    rng, kills = random.Random(seed), []
    for phase, count in phases.items():
        numbers = rng.sample(range(1, moments[0][phase] + 1), count)
        kills += [(rng.randrange(len(moments)) if phase == "steps" else 0, phase, number) for number in numbers]
    return kills


def test_two_kills_are_survived_bit_for_bit(tiny_base: Path, tiny_subject: Path, tmp_path: Path) -> None:
    kills = Kills(tiny_base, tiny_subject, tmp_path, processes=1, batches=1)
    kills.check(draw_kills(kills.whole(), {"saving": 1, "steps": 1}, seed=1))


@pytest.mark.long
@pytest.mark.parametrize(("processes", "batches"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_twenty_kills_are_survived_bit_for_bit(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, processes: int, batches: int
) -> None:
    """Five each, so 20 in all: 4 while caching, 8 while saving, 8 between steps."""
    kills = Kills(tiny_base, tiny_subject, tmp_path, processes, batches)
    moments, started = kills.whole(), time.monotonic()
    chosen = draw_kills(moments, {"caching": 1, "saving": 2, "steps": 2}, seed=10 * processes + batches)
    kills.check(chosen)
    print(f"{processes} processes, {batches} batches: {chosen} in {time.monotonic() - started:.0f} s; of {moments}")
