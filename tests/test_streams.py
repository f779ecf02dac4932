"""Whoever stops listening ends nothing: a program whose output cannot be written does its work."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, environment, training_words

# It writes on every way that ours do, more than any buffer holds, and then a file.
WRITER = """
import logging, sys
from pathlib import Path
from eqdiff.errors import UserError, main_guard

@main_guard
def main():
    logging.basicConfig(level=logging.INFO)
    from tqdm import tqdm
    for number in tqdm(range(2000), mininterval=0):
        print("a line of a dog, and of a B\\u00e4r", number)
        if number % 100 == 0:
            logging.info("a note on a B\\u00e4r")
            print("a warning", file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text("done")
    if sys.argv[2:] == ["refuse"]:
        raise UserError("no photos: give some")

main()
"""


def leave_after_a_line(process: subprocess.Popen) -> None:
    """As `| head -1` does."""
    for stream in (process.stdout, process.stderr):
        stream.readline()
        stream.close()


def leave_at_once(process: subprocess.Popen) -> None:
    process.stdout.close()
    process.stderr.close()


def close(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers]


def full(*numbers: int) -> Callable[[], None]:
    """A log on a full disk."""
    return lambda: [os.dup2(os.open("/dev/full", os.O_WRONLY), number) for number in numbers]


# name -> changes of the environment, what the child does first, what the parent does
CASES: dict[str, tuple[dict[str, str], Callable | None, Callable | None]] = {
    "head": ({}, None, leave_after_a_line),
    "head, unbuffered": ({"PYTHONUNBUFFERED": "1"}, None, leave_after_a_line),
    "nobody": ({}, None, leave_at_once),
    "nobody, unbuffered": ({"PYTHONUNBUFFERED": "1"}, None, leave_at_once),
    "no stdout": ({}, close(1), None),
    "no stderr": ({}, close(2), None),
    "no stream at all": ({}, close(0, 1, 2), None),
    "a full disk": ({}, full(1, 2), None),
    "a full disk, unbuffered": ({"PYTHONUNBUFFERED": "1"}, full(1, 2), None),
    "ASCII alone": ({"PYTHONIOENCODING": "ascii:strict"}, None, None),
}


@pytest.mark.parametrize("how", [[], ["refuse"]], ids=["does", "refuses"])
@pytest.mark.parametrize("name", CASES)
def test_a_program_ends_with_its_own_status_whoever_stops_listening(
    tmp_path: Path, name: str, how: list[str]
) -> None:
    changes, prepare, leave = CASES[name]
    if prepare and "full" in name and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-c", WRITER, str(tmp_path / "work"), *how]
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running = subprocess.Popen(command, env=environment(**changes), preexec_fn=prepare, **pipes)
    if leave:
        leave(running)
        status, err = running.wait(timeout=60), b""
    else:
        _, err = running.communicate(timeout=60)
        status = running.returncode

    assert status == (2 if how else 0), err[-2000:]
    assert (tmp_path / "work").read_text() == "done"
    assert b"Traceback" not in err and b"Exception ignored" not in err


def test_what_the_encoding_lacks_is_written_as_an_escape(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "work")]
    changes = {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, env=environment(**changes), capture_output=True, timeout=60)
    assert b"a B\\xe4r 1999\n" in done.stdout and b"a note on a B\\xe4r" in done.stderr


def test_a_closed_stream_gets_no_file_of_ours(tmp_path: Path) -> None:
    """The number of a closed stream would go to the next file, and get what is printed."""
    code = "import os\nfrom eqdiff.process.streams import unfailing_streams\n"
    code += f"with unfailing_streams():\n file = open({str(tmp_path / 'mine')!r}, 'w')\n"
    code += " os.write(1, b'printed')\n os.write(2, b'printed')\n"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), preexec_fn=close(1, 2))
    assert done.returncode == 0
    assert (tmp_path / "mine").read_text() == ""


@pytest.mark.long
def test_a_training_that_nobody_listens_to_ends_with_its_concept(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    """`train ... 2>&1 | head -1`, as containers run it."""
    words = training_words(tiny_base, tiny_subject, tmp_path / "out", validation_steps=2)
    command = [sys.executable, str(ROOT / "train_eqdiff.py"), *words]
    how: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    changes = {"PYTHONUNBUFFERED": "1", "EQDIFF_CACHE": str(tmp_path / "cache")}
    running = subprocess.Popen(command, env=environment(**changes), **how)
    running.stdout.read(1)
    running.stdout.close()
    assert running.wait(timeout=300) == 0
    assert (tmp_path / "out" / "concept.safetensors").exists()
