"""Run by tests/conftest.py: our programs in forks of one process that has imported torch and its
kin, and nothing of ours.

    python tests/forks.py < jobs > results        (in helpers.environment())

Of both a line is a JSON. A job: {"script": FILE, "argv": [...], "path": FOLDER, "environment":
{...}}, and perhaps "cwd": where it runs, if not in `path`, and "ranks": of so many processes, to
which the environment says what torchrun does. The script imports from `path` before it does from
anywhere else. A result: {"statuses": the exit status of each process, "out": what they printed,
"err": what they said}. Most of a program's start is imports: so a test of what a program does, not
of the process that it is, takes seconds less.
"""

import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from typing import Any, NoReturn

import accelerate  # noqa: F401
import torch
import torchvision  # noqa: F401
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401


def child(job: dict[str, Any], own: dict[str, str], out: int, err: int) -> NoReturn:
    """One process of a job, in a fork."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ |= job["environment"] | own
    os.chdir(job.get("cwd", job["path"]))
    sys.path = [job["path"], *sys.path]  # as PYTHONPATH does for a new interpreter
    sys.argv = [job["script"], *job["argv"]]
    status = 0
    try:
        runpy.run_path(job["script"], run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def places(count: int) -> list[dict[str, str]]:
    """What the environment says to each of several processes of one run."""
    if count == 1:
        return [{}]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
    meeting |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def ends_of(numbers: list[int]) -> list[int]:
    """The exit statuses of processes. When one has failed the others, which may wait for it for
    ever, are killed."""
    ends: dict[int, int] = {}
    while len(ends) < len(numbers):
        number, status = os.wait()
        ends[number] = os.waitstatus_to_exitcode(status)
        if ends[number]:
            for other in set(numbers) - ends.keys():
                os.kill(other, signal.SIGKILL)
    return [ends[number] for number in numbers]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Statuses and words of a job when all of its processes have ended."""
    numbers = []
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        for own in places(job.get("ranks", 1)):
            number = os.fork()
            if not number:
                child(job, own, out.fileno(), err.fileno())
            numbers.append(number)
        statuses = ends_of(numbers)
        said = {}
        for name, file in (("out", out), ("err", err)):
            file.seek(0)
            said[name] = file.read().decode(errors="replace")
    return {"statuses": statuses, **said}


if __name__ == "__main__":
    ours = [name for name in sys.modules if name.partition(".")[0] == "eqdiff"]
    assert not ours, ours  # else a copy of the package would not be the one that runs
    torch.set_num_threads(1)
    os.environ.pop("EQDIFF_BASE", None)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
