"""Nothing lost: a training that is killed, stopped, or out of disk goes on from its checkpoint, bit
for bit."""

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Server, refused, run_train, training_words
from safetensors import safe_open
from safetensors.torch import load_file

from eqdiff.methods.registry import METHODS
from eqdiff.training import checkpoint
from eqdiff.training.checkpoint import all_checkpoints, newest, read_state
from eqdiff.training.stop import LOCK
from eqdiff.training.trainer import Trainer

RESUME = ["--resume_from_checkpoint", "latest"]
STEPS = {"max_train_steps": 5, "checkpointing_steps": 2, "log_steps": 1, "report_to": "none"}


words = functools.partial(training_words, **STEPS)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_caches")]


def content(out: Path) -> tuple[dict[str, str], dict[str, tuple[torch.dtype, torch.Size, bytes]]]:
    """All of a concept file, bit for bit, but for the order of its metadata, which is safetensors'
    own whim."""
    with safe_open(out / "concept.safetensors", framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(out / "concept.safetensors")
    return metadata, {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in tensors.items()}


def steps_logged(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tiny_subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an uninterrupted training with checkpoints at steps 2 and 4, and its
    cache. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQDIFF_CACHE", str(folder / "cache"))
        run_train(words(tiny_base, tiny_subject, folder / "out"))
    return folder / "out"


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A copy of it as a kill at the last step would have left it."""
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "out" / "concept.safetensors").unlink()
    return tmp_path / "out"


# -- killed ----------------------------------------------------------------------------------------


Jobs = list[dict[str, Any]]
RunJobs = Callable[[Jobs], Jobs]


@pytest.fixture(scope="module")
def run_jobs() -> Iterator[RunJobs]:
    """Runs jobs as tests/kills.py has them."""
    server = Server("kills.py")
    yield server.ask
    server.end()


class Kills:
    """Killed trainings of one kind (processes, batches a step) against the uninterrupted one."""

    def __init__(
        self,
        run_jobs: RunJobs,
        base: Path,
        subject: Path,
        folder: Path,
        processes: int,
        batches: int,
        method: str = "eqdiff",
    ) -> None:
        self.run_jobs, self.folder, self.processes = run_jobs, folder, processes
        self.given = (base, subject)
        self.changes = {"gradient_accumulation_steps": batches, "method": method}
        self.changes["train_batch_size"] = 2

    def job(
        self, name: str, *more: str, kill: tuple[int, str, int] | None = None
    ) -> dict[str, Any]:
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        first = self.folder / "whole" / "cache"
        if first.is_dir() and not name.startswith("caching") and not (place / "cache").exists():
            shutil.copytree(first, place / "cache")
        argv = [*words(*self.given, place / "out", **self.changes), *more]
        return {
            "argv": argv,
            "cache": str(place / "cache"),
            "processes": self.processes,
            "kill": kill,
        }

    def whole(self) -> list[dict[str, int]]:
        """Trains without a kill; the moments that came, by process."""
        (result,) = self.run_jobs([self.job("whole")])
        assert result["statuses"] == [0] * self.processes, result["said"]
        return result["moments"]

    def check(self, kills: list[tuple[int, str, int]]) -> None:
        """Each kill is survived: the training is offered to be gone on with if there is a
        checkpoint, else it starts over; the concept is the uninterrupted one's, and no step is
        logged twice."""
        names = [f"{phase}-{rank}-{number}" for rank, phase, number in kills]
        again = [[self.job(name, kill=kill), self.job(name), self.job(name, *RESUME)] for name,
        kill in zip(
            names, kills, strict=True)]  # fmt: skip
        results = iter(self.run_jobs([job for jobs in again for job in jobs]))
        for name, (rank, _, _) in zip(names, kills, strict=True):
            killed, plain, resumed = next(results), next(results), next(results)
            out = self.folder / name / "out"
            assert killed["statuses"][rank] == -signal.SIGKILL, (name, killed)
            if set(plain["statuses"]) != {0}:
                offered = any("--resume_from_checkpoint latest" in said for said in plain["said"])
                assert 2 in plain["statuses"] and offered, (name, plain)
                assert resumed["statuses"] == [0] * self.processes, (name, resumed)
            assert content(out) == content(self.folder / "whole" / "out"), name
            assert steps_logged(out) == [1, 2, 3, 4, 5], name
            assert not list(out.rglob("*.partial*")) and not (out / LOCK).exists(), name


def draw_kills(
    moments: list[dict[str, int]], phases: dict[str, int], seed: int
) -> list[tuple[int, str, int]]:
    """So many seeded random moments of each phase; between steps any process may be the one, else
    it is the first."""
    rng, kills = random.Random(seed), []
    for phase, count in phases.items():
        for number in rng.sample(range(moments[0][phase]), count):
            rank = rng.randrange(len(moments)) if phase == "steps" else 0
            kills.append(
                (rank, phase, 1 + number % moments[rank][phase])
            )  # the second logs nothing, so has fewer
    return kills


def test_a_kill_while_saving_is_survived_bit_for_bit(
    run_jobs: RunJobs, tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    kills = Kills(run_jobs, tiny_base, tiny_subject, tmp_path, processes=1, batches=1)
    kills.check(draw_kills(kills.whole(), {"saving": 1}, seed=1))


@pytest.mark.long
@pytest.mark.parametrize(("processes", "batches"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_twenty_kills_are_survived_bit_for_bit(
    run_jobs: RunJobs, tiny_base: Path, tiny_subject: Path, tmp_path: Path,
    processes: int, batches: int,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    """Five each, so 20 in all: 4 while caching, 8 while saving, 8 between steps."""
    kills = Kills(run_jobs, tiny_base, tiny_subject, tmp_path, processes, batches)
    moments, started = kills.whole(), time.monotonic()
    chosen = draw_kills(
        moments, {"caching": 1, "saving": 2, "steps": 2}, seed=10 * processes + batches
    )
    kills.check(chosen)
    of = f"{processes} processes, {batches} batches a step, in {time.monotonic() - started:.0f} s"
    record_property(
        "kills survived bit for bit", f"{len(chosen)} of {len(chosen)}, {of}: {chosen} of {moments}"
    )


def test_a_killed_training_of_a_method_of_its_own_goes_on_bit_for_bit(
    run_jobs: RunJobs, tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    """The short brother of the next: Ico has an optimizer of its own too."""
    kills = Kills(run_jobs, tiny_base, tiny_subject, tmp_path, 1, 1, "ico")
    kills.check(draw_kills(kills.whole(), {"steps": 1}, seed=3))


@pytest.mark.long
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"eqdiff"}))
def test_a_killed_training_of_every_method_goes_on_bit_for_bit(
    run_jobs: RunJobs, tiny_base: Path, tiny_subject: Path, tmp_path: Path, method: str
) -> None:
    kills = Kills(run_jobs, tiny_base, tiny_subject, tmp_path, 1, 2, method)
    kills.check(draw_kills(kills.whole(), {"saving": 1, "steps": 2}, seed=5))


# -- torn, and full disks --------------------------------------------------------------------------


def test_a_checkpoint_holds_what_is_learned_and_the_facts_and_nothing_frozen(
    finished: Path,
) -> None:
    folder = finished / "checkpoints" / "step-000004"
    assert {p.name for p in folder.iterdir()} == {
        "concept.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    learned, moments = (
        load_file(folder / f"{name}.safetensors") for name in ("concept", "optimizer")
    )
    names = {name for name in learned if not name.startswith("reference.")}
    assert set(moments) == {
        f"{key}/{name}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert (
        not [name for name in names if not name.startswith(("tokens.", "unet.", "rra."))]
        or len(names) < 100
    )
    state = read_state(folder)
    assert (state["step"], state["processes"], state["schedule"]) == (4, 1, "constant")
    assert state["config"]["learning_rate"] == 1e-3
    assert set(state["data"]) == {"photos", "class_images"}
    assert not {"output_dir", "instance_data_dir"} & set(state["config"])


def test_no_step_depends_on_a_global_generator(
    finished: Path,
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a checkpoint needs no state of one: neither their states nor what became of them change
    the concept."""
    draw, descend = Trainer.draw, Trainer.descend
    before: list[Any] = []
    states: list[bool] = []

    def now() -> tuple[Any, int, torch.Tensor]:
        return random.getstate(), np.random.get_state()[2], torch.get_rng_state()

    def scrambled(run: Any, number: int, *which: int) -> Any:
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        before[:] = now()
        return draw(run, number, *which)

    def compared(run: Any, number: int) -> Any:
        losses = descend(run, number)
        python, numpy_place, of_torch = now()
        states.append(before[:2] == [python, numpy_place] and torch.equal(before[2], of_torch))
        return losses

    monkeypatch.setattr(Trainer, "draw", scrambled)
    monkeypatch.setattr(Trainer, "descend", compared)
    shutil.copytree(finished.parent / "cache", tmp_path / "cache")
    run_train(words(tiny_base, tiny_subject, tmp_path / "out"))
    assert states == [True] * 5
    assert content(tmp_path / "out") == content(finished)


def test_a_torn_newest_checkpoint_is_passed_over(
    unfinished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = unfinished / "checkpoints"
    for file in sorted((folder / "step-000004").iterdir()):
        whole = file.read_bytes()
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:size])
            assert newest(folder)[0].name == "step-000002", (file, size)
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        file.write_bytes(flipped)
        assert newest(folder)[0].name == "step-000002" or file.name == "state.json"
        file.unlink()
        caplog.clear()
        assert newest(folder)[0].name == "step-000002"
        assert "step-000004 is passed over" in caplog.text
        file.write_bytes(whole)
    assert newest(folder)[0].name == "step-000004"


def test_a_training_goes_on_before_a_torn_checkpoint_and_ends_the_same(
    finished: Path, unfinished: Path, tiny_base: Path, tiny_subject: Path
) -> None:
    torn = unfinished / "checkpoints" / "step-000004" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    (unfinished / "checkpoints" / ".step-000005.partial").mkdir()
    with (unfinished / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # as a kill leaves it
    run_train([*words(tiny_base, tiny_subject, unfinished), *RESUME])
    assert content(unfinished) == content(finished)
    assert steps_logged(unfinished) == [1, 2, 3, 4, 5]
    assert sorted(p.name for p in (unfinished / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
    ]
    assert read_state(unfinished / "checkpoints" / "step-000004")["step"] == 4


def fill_tmpfs(folder: Path) -> None:
    """Until less than a block is free."""
    with (
        (folder / "filler").open("wb", buffering=0) as file,
        pytest.raises(OSError, match="No space"),
    ):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("how", ["file size limit", "tmpfs"])
def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(
    finished: Path, unfinished: Path, tiny_base: Path, tiny_subject: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, how: str,
) -> None:  # fmt: skip
    """The disk is full when the checkpoint of step 4 is half written."""
    shutil.rmtree(unfinished / "checkpoints" / "step-000004")
    small = tmp_path / "small"
    small.mkdir()
    if (
        how == "tmpfs"
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small]).returncode
    ):
        pytest.skip("may not mount")
    try:
        shutil.copytree(unfinished, small / "out")
        save, limit = checkpoint.save_file, resource.getrlimit(resource.RLIMIT_FSIZE)

        def on_full_disk(*args: Any, **kwargs: Any) -> None:
            if how == "tmpfs":
                fill_tmpfs(small)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
            save(*args, **kwargs)

        monkeypatch.setattr(checkpoint, "save_file", on_full_disk)
        try:
            said = refused(
                capsys, run_train, [*words(tiny_base, tiny_subject, small / "out"), *RESUME]
            )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert "step-000004: cannot be written" in said and "latest (from step-000002)" in said
        assert [p.name for p in (small / "out" / "checkpoints").iterdir()] == ["step-000002"]
        assert newest(small / "out" / "checkpoints")[0].name == "step-000002"
        (small / "filler").unlink(missing_ok=True)
        monkeypatch.setattr(checkpoint, "save_file", save)
        run_train([*words(tiny_base, tiny_subject, small / "out"), *RESUME])
        assert content(small / "out") == content(finished)
    finally:
        if how == "tmpfs":
            subprocess.run(["umount", small], check=True)


# -- what goes on, what begins anew ----------------------------------------------------------------


def test_an_unfinished_training_is_offered_and_never_overwritten_unasked(
    unfinished: Path, tiny_base: Path, tiny_subject: Path, capsys: pytest.CaptureFixture
) -> None:
    before = {p: p.read_bytes() for p in unfinished.rglob("*") if p.is_file()}
    said = refused(capsys, run_train, words(tiny_base, tiny_subject, unfinished))
    assert (
        "step-000004" in said
        and "--resume_from_checkpoint latest" in said
        and "--overwrite" in said
    )
    assert {p: p.read_bytes() for p in unfinished.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"learning_rate": 0.5}, "--learning_rate 0.5 differs from the checkpoint's 0.001"),
        (
            {"seed": 3, "train_batch_size": 1},
            "--train_batch_size 1 differs from the checkpoint's 2 (so do seed)",
        ),
        ({"max_train_steps": 3}, "--max_train_steps 3"),
    ],
)
def test_other_settings_do_not_go_on(
    unfinished: Path, tiny_base: Path, tiny_subject: Path, capsys: pytest.CaptureFixture,
    changes: dict[str, Any], culprit: str,
) -> None:  # fmt: skip
    argv = [*words(tiny_base, tiny_subject, unfinished, **changes), *RESUME]
    assert culprit in refused(capsys, run_train, argv)


def test_more_steps_may_be_trained_and_other_photos_are_told_of(
    finished: Path,
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tiny_subject, tmp_path / "photos")
    photo, other = tmp_path / "photos" / "00.jpg", tmp_path / "photos" / "02.jpg"
    photo.write_bytes(other.read_bytes())
    (tmp_path / "photos" / "masks" / "00.png").write_bytes(
        (tmp_path / "photos" / "masks" / "02.png").read_bytes()
    )
    more = words(
        tiny_base,
        tmp_path / "photos",
        tmp_path / "out",
        max_train_steps=6,
        checkpoints_total_limit=1,
    )
    run_train([*more, *RESUME])
    assert (
        "the photos are not those that" in caplog.text and "class images are not" not in caplog.text
    )
    assert steps_logged(tmp_path / "out") == [1, 2, 3, 4, 5, 6]
    assert [p.name for p in all_checkpoints(tmp_path / "out" / "checkpoints")] == ["step-000006"]


def test_starting_anew_removes_old_checkpoints_but_keeps_the_concept_until_the_new_one_is_there(
    finished: Path,
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    out, step = tmp_path / "out", Trainer.descend

    def broken(run: Any, number: int) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return step(run, number)

    monkeypatch.setattr(Trainer, "descend", broken)
    anew = [*words(tiny_base, tiny_subject, out, seed=1), "--overwrite"]
    with pytest.raises(SystemExit):
        run_train(anew)
    assert content(out) == content(finished)
    assert [p.name for p in all_checkpoints(out / "checkpoints")] == ["step-000002"]
    assert read_state(out / "checkpoints" / "step-000002")["config"]["seed"] == 1
    monkeypatch.setattr(Trainer, "descend", step)
    run_train([*words(tiny_base, tiny_subject, out, seed=1), *RESUME])
    assert content(out) != content(finished)


def test_what_goes_wrong_before_the_first_step_harms_nothing(
    finished: Path,
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    shutil.copytree(finished.parent, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for changes in ({"ra_loss_layers": "nowhere"}, {"pretrained_model_name_or_path": "no/base"}):
        refused(capsys, run_train, [*words(tiny_base, tiny_subject, out, **changes), "--overwrite"])
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    refused(
        capsys,
        run_train,
        words(tiny_base, tiny_subject, tmp_path / "new", ra_loss_layers="nowhere"),
    )
    assert not (tmp_path / "new").exists()


# -- stopped ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "SIGINT",
        "SIGTERM",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("SIGHUP", "SIGUSR1", "SIGXCPU")),
    ],
)
def test_a_signal_saves_the_step_says_how_to_go_on_and_loses_nothing(
    finished: Path, tiny_base: Path, tiny_subject: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str,
) -> None:  # fmt: skip
    shutil.copytree(finished.parent / "cache", tmp_path / "cache")
    draw, number, sent = Trainer.draw, signal.Signals[name], []

    def signalled(run: Any, step: int, part: int = 0) -> Any:
        if step == 3 and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)
        return draw(run, step, part)

    monkeypatch.setattr(Trainer, "draw", signalled)
    argv = words(tiny_base, tiny_subject, tmp_path / "out", checkpointing_steps=0)
    with pytest.raises(SystemExit) as stop:
        run_train(argv)
    assert stop.value.code == 128 + number
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said.startswith(f"stopped by {name} after step 3")
        and "--resume_from_checkpoint latest" in said
    )
    assert "--resume_from_checkpoint latest" in refused(capsys, run_train, argv)
    run_train([*argv, *RESUME])
    assert content(tmp_path / "out")[1] == content(finished)[1]
    assert steps_logged(tmp_path / "out") == [1, 2, 3, 4, 5]


def test_a_signal_before_the_first_step_leaves_no_trace(
    tiny_base: Path,
    tiny_subject: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    from eqdiff.training import class_images as prior

    monkeypatch.setattr(prior, "_write", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        run_train(words(tiny_base, tiny_subject, tmp_path / "out"))
    assert stop.value.code == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err.splitlines()
    assert not (tmp_path / "out").exists()


def test_a_second_signal_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """But one that comes twice at once, from a terminal and from a launcher, is one."""
    from types import SimpleNamespace

    from eqdiff.training import signals as running

    with pytest.raises(SystemExit) as stop, running.Signals() as signals:
        signals.defer(SimpleNamespace(num_processes=1))
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.agreed() == signal.SIGINT
        monkeypatch.setattr(running, "SECOND", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == 143


@pytest.mark.long
def test_a_signal_to_one_process_stops_both_at_the_same_step(
    run_jobs: RunJobs, tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    """The second of two gets it, in the middle of a step; the first saves."""
    kills = Kills(run_jobs, tiny_base, tiny_subject, tmp_path, processes=2, batches=1)
    kills.whole()
    signalled = kills.job("signalled", kill=(1, "steps", 8)) | {"signal": "SIGTERM"}
    stopped, resumed = kills.run_jobs([signalled, kills.job("signalled", *RESUME)])
    assert stopped["statuses"] == [143, 143], stopped
    assert [said.count("which is saved") for said in stopped["said"]] == [1, 0]
    assert resumed["statuses"] == [0, 0], resumed
    assert content(tmp_path / "signalled" / "out") == content(tmp_path / "whole" / "out")


# -- what happens on the way -----------------------------------------------------------------------


def test_a_log_with_a_line_that_nobody_can_read_goes_on_without_that_line(
    finished: Path, unfinished: Path, tiny_base: Path, tiny_subject: Path
) -> None:
    lines = (unfinished / "log.jsonl").read_bytes().splitlines()
    torn = [lines[0], b'{"step": 2, "loss": "\xff"}', lines[2], b"[]", b'{"step": "x"}', lines[3]]
    (unfinished / "log.jsonl").write_bytes(b"\n".join(torn))  # no newline at its end
    run_train([*words(tiny_base, tiny_subject, unfinished), *RESUME])
    assert steps_logged(unfinished) == [1, 3, 4, 5]
    assert content(unfinished) == content(finished)


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_folder_that_is_taken_away_on_the_way_is_one_line_and_is_not_made_again(
    finished: Path, tiny_base: Path, tiny_subject: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, how: str,
) -> None:  # fmt: skip
    """Another training may write there by now: the lock went with the folder."""
    shutil.copytree(finished.parent / "cache", tmp_path / "cache")
    out, descend = tmp_path / "out", Trainer.descend

    def taken(run: Any, number: int) -> Any:
        if number == 3:
            out.rename(tmp_path / "elsewhere") if how == "moved" else shutil.rmtree(out)
        return descend(run, number)

    monkeypatch.setattr(Trainer, "descend", taken)
    line = refused(capsys, run_train, words(tiny_base, tiny_subject, out))
    assert str(out) in line and "removed or moved" in line
    assert not out.exists()


def test_accelerates_environment_changes_no_concept_and_is_told_of(
    finished: Path, tiny_base: Path, tiny_subject: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    changes = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "EAGER",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_SHARDING_STRATEGY": "HYBRID_SHARD",
    }
    shutil.copytree(finished.parent / "cache", tmp_path / "cache")
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    run_train(words(tiny_base, tiny_subject, tmp_path / "out"))
    assert content(tmp_path / "out") == content(finished)
    assert "use flags instead" in caplog.text
    assert all(f"{name}={value}" in caplog.text for name, value in changes.items())
    assert {name: os.environ[name] for name in changes} == changes
