"""Run by tests/test_signals.py: trainings in processes of their own that get a signal at a moment.

    python tests/moments.py < jobs.json > results.json        (in helpers.environment())

A job: {"argv": [...], "cache": FOLDER, "log": FILE, "moment": one of MOMENTS or null, "signal":
NAME}. All jobs are forks of this one process, which has imported everything and computed nothing. A
process that a signal stops is continued.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401
import diffusers  # noqa: F401
import torch
from helpers import run_train

from eqdiff.training import build, checkpoint, class_images, keeper
from eqdiff.training.trainer import Trainer

# moment -> whose which function is then called for the how manieth time
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "masks": (build, "make_masks", 1),
    "class images": (class_images, "_write", 2),
    "a step": (Trainer, "descend", 3),
    "a checkpoint": (checkpoint, "save_file", 1),
    "the last save": (keeper, "save_concept", 1),
}


def before(owner: Any, name: str, number: int, act: Callable[[], None]) -> None:
    """Calls `act` in the `number`-th call of owner.name."""
    original = getattr(owner, name)
    calls = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, watched)


def child(job: dict[str, Any]) -> None:
    """One job, in a fork; it never returns."""
    os.setpgrp()  # the system stops no process whose group is an orphan
    status = 1
    try:
        with open(job["log"], "w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.environ["EQDIFF_CACHE"] = job["cache"]
        if job["moment"]:
            number = signal.Signals[job["signal"]]
            before(*MOMENTS[job["moment"]], lambda: os.kill(os.getpid(), number))
        run_train(job["argv"])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The status of a job (-9: killed), what it printed, and whether it was stopped meanwhile."""
    pid = os.fork()
    if not pid:
        child(job)

    stopped = False
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            break
        stopped = True
        time.sleep(0.05)
        os.kill(pid, signal.SIGCONT)
    text = Path(job["log"]).read_text(errors="replace")
    return {"status": os.waitstatus_to_exitcode(status), "text": text, "stopped": stopped}


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump([run(job) for job in json.load(sys.stdin)], sys.stdout)
