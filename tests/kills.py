"""Run by tests/test_resume.py: trainings in processes of their own that kill themselves (SIGKILL)
at a moment.

    python tests/kills.py < jobs > results        (in helpers.environment())

Of both a line is a JSON: a list of jobs, answered by the list of their results when all are done.
A job: {"argv": [...], "cache": FOLDER, "processes": 1 or 2, "kill": null or [rank, phase, n]}, and
perhaps "signal": the name of another one than SIGKILL. The n-th moment of a phase is: "caching",
before, in the middle of and after the writing of a class image or of cached latents; "saving", the
same of a checkpoint's files, and each sync, rename and removal; "steps", each batch drawn, step
done and line logged. All jobs are forks of this one process, which has imported everything and
computed nothing.
"""

import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401
import diffusers  # noqa: F401
import safetensors.torch
import torch
from helpers import run_train

import eqdiff.objective  # noqa: F401
from eqdiff import files, ours  # noqa: F401
from eqdiff.data import vae as encoding  # noqa: F401
from eqdiff.training import checkpoint, keeper  # noqa: F401
from eqdiff.training import class_images as prior  # noqa: F401
from eqdiff.training import folder as run_folder  # noqa: F401
from eqdiff.training.keeper import Keeper
from eqdiff.training.trainer import Trainer


class Moments:
    """Counts the moments of each phase as they come, and ends this process at one of them."""

    def __init__(self, phase: str | None, number: int, end: signal.Signals) -> None:
        self.phase, self.number, self.end, self.counts, self.saving = (
            phase,
            number,
            end,
            Counter(),
            False,
        )

    def __call__(self, phase: str) -> None:
        self.counts[phase] += 1
        if phase == self.phase and self.counts[phase] == self.number:
            os.kill(os.getpid(), self.end)

    def around(self, owner: Any, name: str, phase: Callable[[], str | None]) -> None:
        """A moment before each call of owner.name and one after it."""
        former = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if now := phase():
                self(now)
            result = former(*args, **kwargs)
            if now:
                self(now)
            return result

        setattr(owner, name, watched)

    def within(self, owner: Any, name: str, phase: Callable[[], str | None]) -> None:
        """Moments before, in the middle of and after each writing by owner.name(content, path,
        ...)."""
        former = getattr(owner, name)

        def half(content: Any, path: Path, *args: Any, **kwargs: Any) -> Any:
            former(content, path, *args, **kwargs)
            for file in {Path(path), Path(path).with_suffix(".partial")}:
                if phase() and file.exists():
                    whole = file.read_bytes()
                    file.write_bytes(whole[: len(whole) // 2])
                    self(phase())
                    file.write_bytes(whole)

        setattr(owner, name, half)
        self.around(owner, name, phase)

    def install(self) -> None:
        save = checkpoint.save_checkpoint

        def save_checkpoint(*args: Any, **kwargs: Any) -> None:
            self.saving = True
            save(*args, **kwargs)
            self.saving = False

        keeper.save_checkpoint = save_checkpoint
        saving = lambda: "saving" if self.saving else None  # noqa: E731
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink")):
            self.around(owner, name, saving)
        self.within(checkpoint, "save_file", saving)
        self.within(safetensors.torch, "save_file", saving)
        self.within(encoding, "save_file", lambda: "caching")
        self.within(prior, "_write", lambda: "caching")
        for owner, name in ((Trainer, "draw"), (Trainer, "descend"), (Keeper, "log")):
            self.around(owner, name, lambda: "steps")


def child(job: dict[str, Any], rank: int, port: int, log: Path) -> None:
    """One process of a job, in a fork; never returns."""
    status = 1
    try:
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.environ["EQDIFF_CACHE"] = job["cache"]
        if job["processes"] > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(job["processes"]),
            }
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        where, phase, number = job["kill"] or (0, None, 0)
        moments = Moments(
            phase if where == rank else None, number, signal.Signals[job.get("signal", "SIGKILL")]
        )
        moments.install()
        run_train(job["argv"])
        log.with_suffix(".json").write_text(json.dumps(moments.counts))
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Statuses (-9: killed), what was said and the moments that came, by process. When one process
    is gone the others are told to go, and after 30 seconds made to, as torchrun does."""
    port, logs, processes = free_port(), [], {}
    for rank in range(job["processes"]):
        logs.append(Path(job["cache"]).with_name(f"rank{rank}.log"))
        logs[-1].with_suffix(".json").unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            child(job, rank, port, logs[-1])
        processes[pid] = rank
    statuses: dict[int, int] = {}
    told = None
    while processes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            statuses[processes.pop(pid)] = os.waitstatus_to_exitcode(status)
        if told is None and any(statuses.values()) or told and time.monotonic() > told + 30:
            for other in processes:
                os.kill(other, signal.SIGKILL if told else signal.SIGTERM)
            told = time.monotonic()
        time.sleep(0.02)
    counts = [log.with_suffix(".json") for log in logs]
    return {
        "statuses": [statuses[rank] for rank in sorted(statuses)],
        "said": [log.read_text() for log in logs],
        "moments": [json.loads(path.read_text()) if path.exists() else {} for path in counts],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps([run(job) for job in json.loads(line)]), flush=True)
