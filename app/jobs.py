"""The queue: one job at a time. Every browser sees the same one, for it lives in the server.

A job is some command lines, run one after another until one fails. What they print goes into a
file, of which the page shows the end.
"""

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eqdiff.errors import UserError, require
from eqdiff.wording import clean

State = Literal["waiting", "running", "done", "failed", "stopped"]
OVER = ("done", "failed", "stopped")
ROOT = Path(__file__).resolve().parent.parent
TAIL = 20_000  # bytes of a log that are looked at
MOST_WAITING = 20
LOWER = 10  # so much a job's priority is below the page's, as `nice` counts
AGAIN = ", again"  # ends the title of a job that runs once more
# what tqdm prints: share, done, all, time so far, time to come
BAR = re.compile(r"([\w ]+):\s+(\d+)%\|[^|]*\| *(\d+)/(\d+) \[([\d:]+)<([\d:?]+)")


@dataclass
class Job:
    """Command lines of root scripts, and what became of them.

    commands: words, the script first, as from the repository's root. kind: the tab that asked.
    target: the folder of the results. log: the file with what they print.
    """

    number: int
    kind: str
    title: str
    commands: Sequence[Sequence[str]]
    target: Path
    log: Path
    state: State = "waiting"
    started: float = 0.0
    ended: float = 0.0
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def text(self) -> str:
        """The end of what it printed; a bar's last state stands for the bar."""
        if not self.log.is_file():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", "replace").split("\n")
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines).strip()

    @property
    def error(self) -> str:
        """The one line of a failed job, as in the terminal; "" if it did not fail."""
        if self.state != "failed":
            return ""
        lines = [line for line in self.text.splitlines() if line.startswith("error: ")]
        return clean(lines[-1]) if lines else "error: it ended early; its last lines say why"

    @property
    def progress(self) -> tuple[str, float, str] | None:
        """What runs, its share in [0,1], and the time to come; None before the first bar."""
        bars = BAR.findall(self.text) if self.state == "running" else []
        if not bars:
            return None
        name, percent, done, total, _, left = bars[-1]
        return f"{name.strip()} {done} of {total}", int(percent) / 100, left


def shown(words: Sequence[str]) -> str:
    """A command line as a shell takes it, from the repository's root."""
    return clean("python " + shlex.join(words))


class Queue:
    """Runs jobs one after another in a thread of its own."""

    def __init__(
        self,
        folder: Path,
        jobs: Sequence[Job] = (),
        keep: Callable[[Sequence[Job]], None] = lambda jobs: None,
    ) -> None:
        """folder: of the logs. jobs: of a server before. keep: is told the jobs at each change."""
        self.folder = folder
        self.jobs = list(jobs)
        self._keep = keep
        self._numbers = itertools.count(1 + max((job.number for job in jobs), default=0))
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, kind: str, title: str, commands: Sequence[Sequence[str]], target: Path) -> Job:
        """Puts a job at the end. Raises UserError if too many wait."""
        with self._changed:
            waiting = sum(job.state == "waiting" for job in self.jobs)
            require(waiting < MOST_WAITING, f"{waiting} jobs wait already; let some end first")
            number = next(self._numbers)
            stamp = time.strftime("%Y%m%d-%H%M%S")
            log = self.folder / f"{stamp}-{number:03d}-{kind}.log"
            job = Job(number, kind, clean(title), commands, target, log)
            self.jobs.append(job)
            self._keep(self.jobs)
            self._changed.notify_all()
        return job

    def stop(self, number: int) -> Job:
        """Takes a waiting job out, or sends a running one Ctrl-C, at which a training saves.

        Raises UserError if there is no such job, or it is over.
        """
        with self._changed:
            job = self.find(number)
            require(job and not job.over, f"job {number} does not run and does not wait")
            job.state = "stopped"
            if job.process is not None:  # if it starts just now, `_run` sends it
                job.process.send_signal(signal.SIGINT)
            self._keep(self.jobs)
        return job

    def again(self, number: int, commands: Sequence[Sequence[str]] = ()) -> Job:
        """Puts a job that is over at the end of the queue; with other commands, if any are given.

        Raises UserError if there is no such job, if it is not over, or if too many wait.
        """
        job = self.find(number)
        require(job and job.over, f"job {number} is not over; run again what has ended")
        title = f"{job.title.removesuffix(AGAIN)}{AGAIN}"
        return self.add(job.kind, title, commands or job.commands, job.target)

    def find(self, number: int) -> Job | None:
        return next((job for job in self.jobs if job.number == number), None)

    def close(self) -> None:
        """Lets the running job save and end. Those that wait are for the next server."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for job in [job for job in self.jobs if job.state == "running"]:
            with suppress(UserError):  # it ended just now
                self.stop(job.number)
        self._thread.join(timeout=300)

    def _work(self) -> None:
        while job := self._next():
            job.started = time.time()
            try:
                code = self._run(job)
            except (OSError, UserError) as error:
                with job.log.open("a", encoding="utf-8") as log:
                    log.write(f"error: {clean(error)}\n")
                code = 2
            with self._changed:
                job.ended = time.time()
                if job.state == "running":
                    job.state = "failed" if code else "done"
                self._keep(self.jobs)

    def _next(self) -> Job | None:
        """The next job, marked as running; None when the queue is closed."""
        with self._changed:
            while not self._closed:
                for job in self.jobs:
                    if job.state == "waiting":
                        job.state = "running"
                        self._keep(self.jobs)
                        return job
                self._changed.wait()
        return None

    def _run(self, job: Job) -> int:
        """Runs a job's commands until one fails; its exit status."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        for words in job.commands:
            with job.log.open("ab") as log:
                log.write(f"$ {shown(words)}\n".encode())
                log.flush()
                process = start(words, log)
                give_way(process.pid)
                with self._changed:
                    job.process = process
                    if job.state == "stopped":  # between two commands
                        process.send_signal(signal.SIGINT)
                code = process.wait()
            if code or job.state == "stopped":
                return code
        return 0


def start(words: Sequence[str], log: object) -> subprocess.Popen:
    """A root script, or a module behind "-m", as a process in the folder where the app runs."""
    script, *rest = words
    if script == "-m":
        script = rest.pop(0).replace(".", "/") + ".py"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *rest],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C at the server is passed on once, by `close`
    )


def give_way(pid: int) -> None:
    """Lets the page and its browser go before a job that has just been started.

    Linux may share its cores among sessions first: `nice` orders the processes within one.
    """
    priority = min(os.getpriority(os.PRIO_PROCESS, 0) + LOWER, 19)
    with suppress(OSError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, pid, priority)
    with suppress(OSError):  # a system without such groups, or one that keeps them to itself
        Path(f"/proc/{pid}/autogroup").write_text(str(priority))
