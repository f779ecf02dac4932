"""Every signal at every moment of a training: a step that is saved, or a silent and right end."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT, environment, training_words
from safetensors.torch import load_file

from eqdiff.errors import UserError, main_guard
from eqdiff.training import signals as module
from eqdiff.training.signals import Signals, Stopped, ending_signals

STEPS = {"max_train_steps": 4, "checkpointing_steps": 2, "log_steps": 1, "report_to": "none"}
RESUME = ["--resume_from_checkpoint", "latest"]
MOMENTS = ("masks", "class images", "a step", "a checkpoint", "the last save")
SAVED = ("a step", "a checkpoint")  # moments after which the step is saved
ENDING = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "XCPU", "ALRM")
HARMLESS = ("XFSZ", "PIPE", "TSTP")
ALL = (*ENDING, *HARMLESS, "KILL")

AT_IMPORT = [sys.executable, str(ROOT / "tests" / "at_import.py")]

words = functools.partial(training_words, **STEPS)
FREE = SimpleNamespace(num_processes=1)


# -- which signals, and when -----------------------------------------------------------------------


def test_every_signal_that_would_end_a_process_is_handled_and_faults_are_not() -> None:
    ending = set(ending_signals())
    assert {signal.Signals[f"SIG{name}"] for name in ENDING} <= ending
    assert {signal.SIGRTMIN, signal.SIGRTMAX, signal.SIGPROF, signal.SIGVTALRM} <= ending
    others = "KILL STOP SEGV BUS FPE ILL ABRT CHLD CONT TSTP TTIN TTOU WINCH URG PIPE XFSZ"
    assert not {signal.Signals[f"SIG{name}"] for name in others.split()} & ending


def test_what_was_ignored_before_stays_ignored_as_nohup_wants_it() -> None:
    """But a shell ignores two signals in all that it starts in the background: those count."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    assert signal.SIGHUP not in ending_signals()
    assert {signal.SIGINT, signal.SIGQUIT} <= set(ending_signals())


def test_a_handler_of_somebody_else_stays() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    assert signal.SIGUSR1 not in ending_signals()


def test_what_a_batch_system_repeats_is_no_impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGXCPU comes each second, and SIGTERM after SIGUSR1 is not a second SIGTERM."""
    monkeypatch.setattr(module, "SECOND", 0.0)
    with Signals() as signals:
        signals.defer(FREE)
        for number in (signal.SIGXCPU, signal.SIGXCPU, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert signals.agreed() == signal.SIGXCPU
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.agreed() == signal.SIGTERM


def test_a_signal_that_a_library_makes_another_error_of_ends_the_run_all_the_same(
    capsys: pytest.CaptureFixture,
) -> None:
    with pytest.raises(SystemExit) as stop, Signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            raise ImportError("half imported") from None
    assert stop.value.code == 143
    assert capsys.readouterr().err.split("\n")[-2] == "stopped by SIGTERM"


def test_a_signal_that_a_library_swallows_ends_the_run_before_its_first_step() -> None:
    with pytest.raises(Stopped) as stop, Signals() as signals:
        with suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGHUP)
        signals.defer(FREE)
    assert stop.value.code == 129


def test_a_signal_within_a_write_to_the_terminal_prints_its_line(
    capsys: pytest.CaptureFixture,
) -> None:
    """The handler prints nothing itself: Python forbids a write amid another one."""

    class Busy:
        def write(self, text: str) -> None:
            pytest.fail("the handler wrote")

    with pytest.raises(SystemExit), Signals():
        original = sys.stderr
        sys.stderr = Busy()
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
        finally:
            sys.stderr = original
    assert "stopped by SIGUSR2" in capsys.readouterr().err


def test_a_signal_that_has_no_name_is_told_by_its_number(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop, Signals():
        os.kill(os.getpid(), signal.SIGRTMIN + 3)
    assert stop.value.code == 128 + signal.SIGRTMIN + 3
    assert f"stopped by signal {signal.SIGRTMIN + 3}" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [SystemExit, UserError])
def test_the_last_line_is_one_write_so_that_two_processes_do_not_mix_theirs(
    monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    writes: list[str] = []
    stream = SimpleNamespace(write=writes.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stderr", stream)

    @main_guard
    def main() -> None:
        if ending is UserError:
            raise UserError("no photo")
        with Signals():
            os.kill(os.getpid(), signal.SIGUSR2)

    with pytest.raises(SystemExit):
        main()
    assert writes == (["error: no photo\n"] if ending is UserError else ["\nstopped by SIGUSR2\n"])


# -- Ctrl-C while modules are imported -------------------------------------------------------------


@pytest.mark.parametrize("module", ["eqdiff.settings.presets", "torch"])
@pytest.mark.parametrize("script", ["train_eqdiff.py", "test_eqdiff.py", "make_masks.py"])
def test_an_interrupt_in_the_first_seconds_shows_no_traceback(
    tmp_path: Path, script: str, module: str
) -> None:
    """Of a script itself, before its main has begun, and of what it imports later."""
    (tmp_path / "photos").mkdir()
    argv = [str(ROOT / script), "--instance_data_dir", str(tmp_path / "photos")]
    argv += ["--concept", "x", "--prompt", "a {}"] if script == "test_eqdiff.py" else []
    argv += ["--class_word", "dog"] if script != "test_eqdiff.py" else []
    command = [*AT_IMPORT, module, "SIGINT", *argv]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT), done.stderr
    assert "Traceback" not in done.stderr


# -- real processes --------------------------------------------------------------------------------


def content(out: Path) -> dict[str, bytes]:
    tensors = load_file(out / "concept.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


class Trainings:
    """Trainings in `folder` that get signals, against one that got none."""

    def __init__(self, base: Path, subject: Path, folder: Path) -> None:
        self.base = base
        self.folder = folder
        self.photos = {True: folder / "bare", False: subject}  # by whether masks are made
        self.photos[True].mkdir()
        for photo in subject.glob("*.jpg"):
            (self.photos[True] / photo.name).write_bytes(photo.read_bytes())

    def job(self, name: str, moment: str | None, sent: str, *more: str) -> dict[str, Any]:
        """A training; for the moments of caching its cache is its own, else that of "whole"."""
        masks = moment == "masks" or "masks" in name
        place = self.folder / name.replace(" ", "_")
        place.mkdir(exist_ok=True)
        caching = "masks" in name or "class" in name
        cache = (place if caching else self.folder) / "cache"
        argv = [*words(self.base, self.photos[masks], place / "out"), *more]
        log = place / f"{'signalled' if moment else 'resumed' if more else 'plain'}.txt"
        return {
            "argv": argv,
            "cache": str(cache),
            "log": str(log),
            "moment": moment,
            "signal": f"SIG{sent}",
        }

    def run(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        command = [sys.executable, str(ROOT / "tests" / "moments.py")]
        how: dict[str, Any] = dict(env=environment(), capture_output=True, text=True, timeout=1800)
        done = subprocess.run(command, input=json.dumps(jobs), **how)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def check(self, pairs: list[tuple[str, str]]) -> None:
        """Each pair is a moment and a signal. Whatever it does, no work is lost by it."""
        names = [f"{moment} {sent}" for moment, sent in pairs]
        wholes = ["whole masks" if moment == "masks" else "whole" for moment, _ in pairs]
        jobs = [self.job(name, None, "KILL") for name in sorted(set(wholes))]
        for name, (moment, sent) in zip(names, pairs, strict=True):
            jobs.append(self.job(name, moment, sent))
            jobs.append(self.job(name, None, sent))
            jobs.append(self.job(name, None, sent, *RESUME))
        results = self.run(jobs)
        for _ in set(wholes):
            assert results[0]["status"] == 0, results[0]
            del results[0]

        for name, whole, (moment, sent) in zip(names, wholes, pairs, strict=True):
            signalled, plain, resumed = results[:3]
            del results[:3]
            require_right_end(name, moment, sent, signalled)
            if signalled["status"] == 0 or plain["status"] == 0:
                assert "concept already" in resumed["text"] or resumed["status"] in (0, 2), name
            else:
                assert plain["status"] == 2 and "unfinished" in plain["text"], (name, plain)
                assert resumed["status"] == 0, (name, resumed)
            out = self.folder / name.replace(" ", "_") / "out"
            assert content(out) == content(self.folder / whole.replace(" ", "_") / "out"), name
            steps = [json.loads(line)["step"] for line in (out / "log.jsonl").open()]
            assert steps == [1, 2, 3, 4], name


def require_right_end(name: str, moment: str, sent: str, result: dict[str, Any]) -> None:
    """The status and the words of a training that got a signal."""
    number = signal.Signals[f"SIG{sent}"]
    text = result["text"]
    assert "Traceback" not in text and "Exception ignored" not in text, (name, text)
    assert result["stopped"] == (sent == "TSTP"), name

    if sent == "KILL":
        assert result["status"] == -signal.SIGKILL and "stopped" not in text, (name, text)
    elif sent in HARMLESS or moment == "the last save":  # all is done: it ends as ever
        assert result["status"] == 0 and "done: " in text, (name, text)
    else:
        assert result["status"] == 128 + number, (name, text)
        assert text.count(f"stopped by SIG{sent}") == text.count("stopped by") == 1, (name, text)
        assert ("which is saved: run the same with" in text) == (moment in SAVED), (name, text)


@pytest.mark.slow
def test_a_signal_while_a_checkpoint_is_saved_loses_no_work(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    """The short brother of the next but one."""
    Trainings(tiny_base, tiny_subject, tmp_path).check([("a checkpoint", "XCPU")])


@pytest.mark.long
@pytest.mark.parametrize("sent", ALL)
def test_every_signal_while_torch_is_imported_ends_right(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, sent: str
) -> None:
    argv = [str(ROOT / "train_eqdiff.py"), *words(tiny_base, tiny_subject, tmp_path / "out")]
    command = [*AT_IMPORT, "torch", f"SIG{sent}", *argv]
    here = environment(EQDIFF_CACHE=str(tmp_path / "cache"))
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # a group of its own: the system stops no process whose group is an orphan
    running = subprocess.Popen(command, env=here, preexec_fn=os.setpgrp, **pipes)
    stopped = sent == "TSTP" and os.WIFSTOPPED(os.waitpid(running.pid, os.WUNTRACED)[1])
    if stopped:
        running.send_signal(signal.SIGCONT)
    text, _ = running.communicate(timeout=600)
    result = {"status": running.returncode, "text": text, "stopped": stopped}
    require_right_end("import", "import", sent, result)
    assert (tmp_path / "out").exists() == (sent in HARMLESS)


@pytest.mark.long
@pytest.mark.parametrize("sent", ALL)
def test_every_signal_at_every_moment_loses_no_work(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, sent: str
) -> None:
    Trainings(tiny_base, tiny_subject, tmp_path).check([(moment, sent) for moment in MOMENTS])


# -- several processes -----------------------------------------------------------------------------

RANKS = """
import os, time
from eqdiff.errors import main_guard
from eqdiff.training.signals import Signals

@main_guard
def main():
    with Signals():
        os.write(1, f"{os.getpid()}\\n".encode())  # at once: two processes write here
        time.sleep(60)

main()
"""


@pytest.fixture
def launched(tmp_path: Path) -> Any:
    """A launcher and the numbers of its two processes."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "eqdiff.training.launch", "2", str(script)]
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)
    yield running, [int(running.stdout.readline()) for _ in range(2)]
    running.kill()
    running.wait()


def are_gone(numbers: list[int], seconds: float) -> bool:
    """Whether processes end within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{number}").exists() for number in numbers):
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_orphan(launched: Any) -> None:
    launcher, numbers = launched
    launcher.kill()
    launcher.wait()
    assert are_gone(numbers, 30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["SIGHUP", *(pytest.param(name, marks=pytest.mark.long) for name in ("SIGUSR1", "SIGXCPU"))],
)
def test_a_launcher_passes_every_signal_on(launched: Any, name: str) -> None:
    launcher, numbers = launched
    launcher.send_signal(signal.Signals[name])
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.Signals[name], err
    assert set(filter(None, err.splitlines())) == {f"stopped by {name}"}
    assert are_gone(numbers, 30)
