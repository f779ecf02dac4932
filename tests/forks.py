"""Run by tests/conftest.py: our programs in forks of one process that has imported torch and its
kin, and nothing of ours.

    python tests/forks.py < jobs > results        (in helpers.environment())

Of both a line is a JSON. A job: {"script": FILE, "argv": [...], "path": FOLDER, "environment":
{...}}; the script imports from `path` before it does from anywhere else. A result: {"status": its
exit status, "out": what it printed, "err": what it said}. Most of a program's start is imports: so
a test of what a program does, not of the process that it is, takes seconds less.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

import accelerate  # noqa: F401
import torch
import torchvision  # noqa: F401
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401


def child(job: dict[str, Any], out: int, err: int) -> NoReturn:
    """One job, in a fork."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ |= job["environment"]
    os.chdir(job["path"])
    sys.path.insert(0, job["path"])
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


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Status and words of a job when it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        places = [os.open(file, os.O_CREAT | os.O_WRONLY) for file in files]
        pid = os.fork()
        if not pid:
            child(job, *places)
        _, status = os.waitpid(pid, 0)
        for place in places:
            os.close(place)
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return {"status": os.waitstatus_to_exitcode(status), "out": out, "err": err}


if __name__ == "__main__":
    ours = [name for name in sys.modules if name.partition(".")[0] == "eqdiff"]
    assert not ours, ours  # else a copy of the package would not be the one that runs
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
