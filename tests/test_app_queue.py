"""The app's queue: one job at a time, stopped, run again, kept for the next server."""

import functools
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app import kept, workplace
from app.jobs import Queue, shown
from eqdiff.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    monkeypatch.chdir(tmp_path / "site")


SCRIPT = """
import sys, time, pathlib
folder, name, seconds, code = sys.argv[1:]
with open(folder + "/order", "a") as file:
    file.write(name + "+ ")
try:
    time.sleep(float(seconds))
except KeyboardInterrupt:
    print("saved"); sys.exit(130)
with open(folder + "/order", "a") as file:
    file.write(name + "- ")
print("a bar:  50%|#####     | 5/10 [00:01<00:01, 1.0it/s]\\rlast line")
if int(code):
    print("error: what <b>, where, what to do", file=sys.stderr)
sys.exit(int(code))
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    (tmp_path / "job.py").write_text(SCRIPT)
    monkeypatch.setattr("app.jobs.ROOT", tmp_path)
    made = Queue(tmp_path / "logs")
    yield made
    made.close()


def words(tmp_path: Path, name: str, seconds: float = 0.0, code: int = 0) -> list[str]:
    return ["job.py", str(tmp_path), name, str(seconds), str(code)]


def wait(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_a_job_goes_behind_the_page(queue: Queue, tmp_path: Path) -> None:
    job = queue.add("teach", "one", [words(tmp_path, "a", 30)], tmp_path)
    wait(lambda: job.process is not None)
    pid = job.process.pid
    lower = min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    assert os.getpriority(os.PRIO_PROCESS, pid) == lower
    group = Path(f"/proc/{pid}/autogroup")
    assert not group.exists() or group.read_text().split()[-1] == str(lower)
    queue.stop(job.number)


def test_jobs_run_one_at_a_time_in_their_order_and_end_at_their_first_error(
    queue: Queue, tmp_path: Path
) -> None:
    failing = [words(tmp_path, "a"), words(tmp_path, "b", code=2), words(tmp_path, "never")]
    first = queue.add("teach", "one", failing, tmp_path)
    second = queue.add("draw", "two", [words(tmp_path, "c", 0.2)], tmp_path)
    assert second.state == "waiting"
    wait(lambda: second.over)
    assert (first.state, second.state) == ("failed", "done")
    assert first.error == "error: what <b>, where, what to do"
    assert second.error == "" and second.text.endswith("last line")
    assert (tmp_path / "order").read_text() == "a+ a- b+ b- c+ c- "


def test_stop_sends_ctrl_c_to_the_running_job_and_takes_a_waiting_one_out(
    queue: Queue, tmp_path: Path
) -> None:
    running = queue.add(
        "teach", "one", [words(tmp_path, "a", 100), words(tmp_path, "no")], tmp_path
    )
    waiting = queue.add("teach", "two", [words(tmp_path, "b")], tmp_path)
    wait(lambda: (tmp_path / "order").exists())
    queue.stop(waiting.number)
    time.sleep(0.3)
    queue.stop(running.number)
    wait(lambda: running.process.poll() is not None)
    wait(lambda: running.ended)
    assert (running.state, waiting.state) == ("stopped", "stopped")
    assert running.text.endswith("saved")
    assert (tmp_path / "order").read_text() == "a+ "
    for number in (running.number, 99):
        with pytest.raises(UserError):
            queue.stop(number)


def test_closing_lets_the_running_job_save(queue: Queue, tmp_path: Path) -> None:
    job = queue.add("teach", "one", [words(tmp_path, "a", 100)], tmp_path)
    wait(lambda: (tmp_path / "order").exists())
    time.sleep(0.3)
    queue.close()
    assert job.process.returncode == 130 and job.text.endswith("saved")


def test_a_job_that_waited_is_run_by_the_next_server_and_one_that_ran_is_stopped(
    queue: Queue, tmp_path: Path
) -> None:
    keep = functools.partial(kept.keep, workplace.QUEUE)
    first = Queue(workplace.LOGS, (), keep)
    lines = [words(tmp_path, "a", 100), words(tmp_path, "never")]
    first.add("teach", "one <b>", lines, workplace.OUTPUTS / "one")
    first.add("draw", "two", [words(tmp_path, "b")], workplace.OUTPUTS / "two")
    wait(lambda: (tmp_path / "order").exists())
    killed = kept.read(workplace.QUEUE)
    assert [job.state for job in killed] == ["stopped", "waiting"]
    time.sleep(0.3)
    first.close()
    assert (tmp_path / "order").read_text() == "a+ "

    second = Queue(workplace.LOGS, kept.read(workplace.QUEUE), keep)
    wait(lambda: second.jobs[1].over)
    assert [(job.number, job.state) for job in second.jobs] == [(1, "stopped"), (2, "done")]
    assert second.jobs[0].title == "one <b>" and second.jobs[0].text.endswith("saved")
    assert (tmp_path / "order").read_text() == "a+ b+ b- "
    assert second.add("draw", "three", [words(tmp_path, "c")], tmp_path).number == 3
    wait(lambda: second.jobs[2].over)
    second.close()


def row_of(**changes: object) -> dict[str, Any]:
    row = {"number": 1, "kind": "draw", "title": "x", "commands": [["job.py"]], "state": "waiting"}
    return {**row, "target": "outputs/x", "log": "outputs/app/logs/x.log", **changes}


def test_a_queue_in_a_copied_folder_waits_for_a_click(monkeypatch: pytest.MonkeyPatch) -> None:
    kept.keep(workplace.QUEUE, [])
    text = json.loads(workplace.QUEUE.read_text())
    workplace.QUEUE.write_text(json.dumps({**text, "jobs": [row_of()]}))
    assert [job.state for job in kept.read(workplace.QUEUE)] == ["waiting"]
    shutil.copytree("outputs", "elsewhere/outputs")
    monkeypatch.chdir("elsewhere")
    (copied,) = kept.read(workplace.QUEUE)
    assert copied.state == "stopped"


@pytest.mark.parametrize(
    "changes",
    [
        {"log": "/etc/passwd"},
        {"log": "outputs/../../secret"},
        {"target": "/"},
        {"commands": [[]]},
        {"commands": [[1]]},
        {"state": "<b>"},
        {"number": "1"},
        {"title": None},
        {"more": 1},
        None,
    ],
)
def test_a_kept_queue_that_is_none_is_a_warning_and_shows_no_file_of_others(
    changes: dict[str, object] | None, caplog: pytest.LogCaptureFixture
) -> None:
    kept.keep(workplace.QUEUE, [])
    text = json.loads(workplace.QUEUE.read_text())
    rows = [row_of(**changes)] if changes else 3
    workplace.QUEUE.write_text(json.dumps({**text, "jobs": rows}))
    assert kept.read(workplace.QUEUE) == []
    assert "the queue starts empty" in caplog.text


def test_run_again_takes_what_is_over_alone(queue: Queue, tmp_path: Path) -> None:
    failed = queue.add("draw", "one", [words(tmp_path, "a", code=2)], tmp_path)
    wait(lambda: failed.over)
    again = queue.again(failed.number)
    assert (again.commands, again.target) == (failed.commands, tmp_path)
    wait(lambda: again.over)
    assert queue.again(again.number).title == "one, again"
    slow = queue.add("draw", "two", [words(tmp_path, "b", 100)], tmp_path)
    for number in (slow.number, 99):
        with pytest.raises(UserError, match="not over"):
            queue.again(number)


def test_progress_is_read_off_the_bar(queue: Queue, tmp_path: Path) -> None:
    job = queue.add("teach", "x", [words(tmp_path, "a")], tmp_path)
    wait(lambda: job.over)
    job.log.write_bytes(b"training:  20%|## | 4/20 [07:16<07:53, 29s/step]\rtraining:  25%|## | "
                        b"5/20 [07:16<32:36, 1.4s/step, loss=0.26]")  # fmt: skip
    job.state = "running"
    assert job.progress == ("training 5 of 20", 0.25, "32:36")
    job.state = "done"


def test_the_shown_command_is_what_runs_as_a_shell_takes_it() -> None:
    assert shlex.split(shown(["test_eqdiff.py", "--prompt=a {} <b>'$(x)"]))[1:] == [
        "test_eqdiff.py",
        "--prompt=a {} <b>'$(x)",
    ]
    assert sys.executable not in shown(["x.py"])
