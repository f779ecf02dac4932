"""Nobody surprised: what is not finite, too large, dead or empty is said before it harms; one run
in a folder; several processes end as one."""

import errno
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT, environment, long_after, refused, run_train, tiny_config, training_words
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from eqdiff.errors import UserError
from eqdiff.settings.train import TrainConfig
from eqdiff.training.guard import Guard, all_dead
from eqdiff.training.launch import explain
from eqdiff.training.stop import LOCK, locked
from eqdiff.training.trainer import Trainer

words = functools.partial(training_words, report_to="none")
pytestmark = pytest.mark.usefixtures("own_caches")


# -- numbers that are not finite -------------------------------------------------------------------


class Watched:
    """The weights and moments of a training after each step. Its step 3 gets a latent that is not a
    number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        draw, step = Trainer.draw, Trainer.descend

        def poisoned(run: Any, number: int, *which: int) -> Any:
            batch = draw(run, number, *which)
            if number == 3:
                batch.z0[0, 0, 0, 0] = torch.nan
                batch.mask[0] = 1
            return batch

        def noted(run: Any, number: int) -> Any:
            losses = step(run, number)
            state = {n: p.detach().clone() for n, p in run.trained.items()}
            for n, p in run.trained.items():
                state |= {
                    f"{key}/{n}": value.clone() for key, value in run.optimizer.state[p].items()
                }
            self.states.append(state)
            return losses

        monkeypatch.setattr(Trainer, "draw", poisoned)
        monkeypatch.setattr(Trainer, "descend", noted)

    def same(self, a: int, b: int) -> bool:
        """Whether the states after steps a and b are the same, bit for bit."""
        one, other = self.states[a - 1], self.states[b - 1]
        return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("read", ["at each step", "when something falls due"])
def test_a_loss_that_is_not_finite_leaves_weights_and_moments_as_they_were(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, read: str,
) -> None:  # fmt: skip
    """Also where a device is read at log lines and checkpoints alone, as a GPU is; no later step
    changes them then."""
    if read != "at each step":
        monkeypatch.setattr(Guard, "free", False)
    watched = Watched(monkeypatch)
    changes = {"log_steps": 100, "checkpointing_steps": 2, "max_train_steps": 6}
    line = refused(capsys, run_train, words(tiny_base, tiny_subject, tmp_path / "out", **changes))
    assert len(watched.states) == (3 if read == "at each step" else 4)
    assert not watched.same(1, 2) and watched.same(2, len(watched.states))
    assert (
        "error: step 3: " in line
        and "the last good checkpoint is" in line
        and "step-000002" in line
    )
    assert line.count(".jpg ") == 2 and line.count(" t=") == 2
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-000002"]
    assert not (tmp_path / "out" / "concept.safetensors").exists()


def test_watching_reads_nothing_from_the_device() -> None:
    reads = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                reads.append(func)
            return func(*args, **(kwargs or {}))

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    guard = Guard(
        SimpleNamespace(device=torch.device("cpu"), num_processes=1, scaler=None), optimizer
    )
    weight.grad = torch.ones(3)
    with Reads():
        guard.watch(1, torch.tensor(1.0), torch.tensor(torch.inf))
        optimizer.step()
        assert not reads
        float(weight.detach()[0])
    assert len(reads) == 1
    assert torch.equal(weight, torch.ones(3)) and optimizer.state[weight]["step"] == 0


def test_with_a_scaler_a_bad_step_makes_every_later_gradient_bad() -> None:
    """Which the scaler then skips; too large a gradient alone is its own business."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, scaler=object())
    guard = Guard(accelerator, torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]))
    x = torch.ones(1, requires_grad=True)
    for step, loss, finite in ((1, 1.0, True), (2, torch.nan, True), (3, 1.0, False)):
        (gradient,) = torch.autograd.grad(guard.scale(2 * x), x)
        assert bool(torch.isfinite(gradient)) == finite
        guard.watch(step, torch.tensor(loss), torch.tensor(torch.inf))
    assert guard.step == 2


# -- memory, gate, masks ---------------------------------------------------------------------------


def test_running_out_of_memory_names_three_settings_that_help(
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has little.\nMore"
        )

    monkeypatch.setattr(Trainer, "descend", full)
    line = refused(capsys, run_train, words(tiny_base, tiny_subject, tmp_path / "out"))
    assert line.startswith("error: out of memory (CUDA out of memory")
    assert all(
        f"--{name}" in line for name in ("gradient_checkpointing", "train_batch_size", "resolution")
    )


def test_a_gate_that_stays_shut_warns_once(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"learning_rate": 0, "log_steps": 1, "max_train_steps": 3}
    run_train(words(tiny_base, tiny_subject, tmp_path / "out", **changes))
    assert caplog.text.count("after step 2 the gate of the reference attention is 0") == 1
    assert caplog.text.count("the gate of the reference attention") == 1
    shut, open_ = (0.0, 0.0, 1.0), (0.1, 0.0, 0.9)
    assert (
        all_dead({"a": shut, "b": shut})
        and not all_dead({"a": shut, "b": open_})
        and not all_dead({})
    )


@pytest.mark.parametrize("cache", [True, False])
def test_a_mask_that_is_empty_in_the_latents_is_refused_by_name(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, cache: bool
) -> None:
    from eqdiff.data.latents import prepare, prepare_live
    from eqdiff.data.subject import load_subject

    (tmp_path / "masks").mkdir()
    for i in range(2):
        Image.new("RGB", (64, 64), "grey").save(tmp_path / f"{i:02}.jpg")
        mask = Image.new("L", (64, 64), 255 if i == 0 else 0)
        mask.paste(255, (3, 3, 5, 5))  # between the pixels that nearest takes
        mask.save(tmp_path / "masks" / f"{i:02}.png")
    config: TrainConfig = tiny_config(tiny_base, tmp_path, binary_masks=False)
    subject = load_subject(tmp_path, class_word="dog toy", resolution=64, binary_masks=False)

    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (torch.zeros(len(images), 4, 8, 8),) * 2

    with pytest.raises(UserError, match=r"01\.jpg: its mask is empty in the latents"):
        if cache:
            prepare(subject, None, config, encode, torch.Generator())
        else:
            prepare_live(subject, None, config, encode)


# -- one run in a folder ---------------------------------------------------------------------------


def test_two_trainings_in_one_folder_are_refused_until_the_first_is_gone(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    code = "import time; from eqdiff.training.stop import *"
    code += f"\nwith locked(Path({str(out)!r})): print('has it', flush=True); time.sleep(600)"
    how = dict(env=environment(), stdout=subprocess.PIPE, text=True)
    other = subprocess.Popen([sys.executable, "-c", code], **how)
    try:
        assert other.stdout.readline() == "has it\n"
        line = refused(capsys, run_train, words(tiny_base, tiny_subject, tmp_path / "out"))
        assert str(out) in line and "another training" in line
    finally:
        other.kill()
        other.wait()
    assert (out / LOCK).exists()
    with locked(out):
        pass
    assert not (out / LOCK).exists()


CONTENDER = """
import sys, time
from pathlib import Path
from eqdiff.training.stop import FolderTaken, locked

folder, entered = Path(sys.argv[1]), 0
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        with locked(folder / "out"):
            (folder / "inside").touch(exist_ok=False)
            (folder / "inside").unlink()
            entered += 1
    except FolderTaken:
        pass
print(entered)
"""


@pytest.mark.slow
def test_of_processes_that_contend_for_a_folder_one_at_a_time_is_inside(tmp_path: Path) -> None:
    """Each removes the lock's file at its end, while the others are about to open it."""
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", CONTENDER, str(tmp_path)]
    pipes = dict(env=environment(), stdout=subprocess.PIPE, text=True)
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    entered = [process.communicate(timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert min(map(int, entered)) > 10
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_on_a_disk_without_locks_a_warning_names_the_folder_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()

    (record,) = caplog.records
    assert str(tmp_path / "out") in record.getMessage()
    assert "start no other training there" in record.getMessage()
    assert not (tmp_path / "out").exists()


# -- several processes -----------------------------------------------------------------------------

RANKS = """
import os, sys, time
from eqdiff.errors import UserError, main_guard
from eqdiff.training.signals import Signals

@main_guard
def main():
    rank, how = int(os.environ["RANK"]), sys.argv[1]
    if how == "all err" or how == "one errs" and rank == 1:
        raise UserError("no photos: give some")
    if how == "a bug" and rank == 0:
        raise ValueError("a bug")
    with Signals():
        os.write(1, b"waiting\\n")  # at once: two processes write here
        time.sleep(60)

main()
"""


@pytest.fixture
def ranks(tmp_path: Path) -> list[str]:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    return [sys.executable, "-m", "eqdiff.training.launch", "2", str(script)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status", "said"),
    long_after(
        1,
        [
            ("one errs", 2, "error: no photos: give some"),
            ("all err", 2, "error: no photos: give some"),
            ("a bug", 1, "ValueError: a bug"),
        ],
    ),
)
def test_what_ends_one_process_ends_all_and_is_said_once(
    ranks: list[str], how: str, status: int, said: str
) -> None:
    settings = dict(cwd=ROOT, env=environment(), timeout=120)
    done = subprocess.run([*ranks, how], capture_output=True, text=True, **settings)
    assert done.returncode == status, done.stderr
    lines = [
        line for line in done.stderr.splitlines() if line and not line.startswith("stopped by")
    ]
    assert lines[-1] == said and done.stderr.count(said) == 1
    assert status == 1 or len(lines) == 1


@pytest.mark.slow
def test_a_signal_to_the_launcher_ends_all_with_its_status(ranks: list[str]) -> None:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = subprocess.Popen([*ranks, "wait"], cwd=ROOT, env=environment(), **pipes)
    assert [running.stdout.readline() for _ in range(2)] == ["waiting\n"] * 2
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 143
    assert set(filter(None, err.splitlines())) == {"stopped by SIGTERM"}


def failure(exitcode: int, timestamp: int, message: str | None = None) -> SimpleNamespace:
    data = {} if message is None else {"message": message}
    return SimpleNamespace(
        exitcode=exitcode, timestamp=timestamp, message=message or "", error_file_data=data
    )


def test_a_users_error_is_the_cause_before_what_it_did_to_the_others() -> None:
    others = {
        0: failure(1, 5, "Traceback\nRuntimeError: connection closed"),
        1: failure(2, 6, "error: disk is full"),
    }
    assert explain(others) == ("error: disk is full", 2)
    assert explain({0: failure(143, 5)}) == ("", 143)
    assert explain({1: failure(-9, 5)}) == (
        "error: process 1 ended with signal 9; see its messages above",
        137,
    )
