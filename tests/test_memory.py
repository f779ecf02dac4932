"""Too little memory: one line that names what helps, whatever library ran out of it, and where."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, environment, long_after, run_train, training_words

from eqdiff.errors import UserError, main_guard, memory_guard

HELP = "--batch_size 1"
# what libraries raise, as it was seen; add a row for each new one
RAISED: dict[str, Exception] = {
    "torch on a GPU": torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has little.\nMore"
    ),
    "torch on a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 36028797018963968 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "oneDNN": RuntimeError("could not create a primitive"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
    "Python": MemoryError(),
    "C++": RuntimeError("std::bad_alloc"),
    "a mapped file": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "a thread": RuntimeError("can't start new thread"),
    "OpenCV": Exception("OpenCV(4.10) error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    "the loader": ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    "an import": SystemError("error return without exception set"),
    "a C function": SystemError("<function f> returned NULL without setting an exception"),
}
# where a library's own code ends the process, and none of ours is asked: the status, what it says
LIBRARYS_OWN_END = {-signal.SIGABRT: "std::bad_alloc", 127: "cannot allocate memory for thread"}


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("name", RAISED)
def test_whatever_ran_out_of_memory_the_line_says_what_helps(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match=r"out of memory \(.*what helps: --batch_size 1"):  # noqa: SIM117
        with memory_guard(HELP):
            fail(RAISED[name])

    with pytest.raises(SystemExit) as stop:  # where no guard stands, as at an import
        main_guard(fail)(RAISED[name])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: out of memory (")


def test_memory_is_named_though_a_library_wrapped_the_error(
    capsys: pytest.CaptureFixture,
) -> None:
    error = RuntimeError("cannot load the part")
    error.__cause__ = ImportError("this module failed")
    error.__cause__.__cause__ = MemoryError()
    with pytest.raises(SystemExit):
        main_guard(fail)(error)
    assert capsys.readouterr().err.startswith("error: out of memory (")


def test_what_memory_did_not_cause_keeps_its_own_error() -> None:
    for error in (RuntimeError("something else"), UserError("no photos"), KeyError("memory")):
        with pytest.raises(type(error), match=str(error)), memory_guard(HELP):
            raise error
    with pytest.raises(UserError, match="had on the CPU"), memory_guard(HELP):
        torch.empty(1 << 55, dtype=torch.uint8)


@pytest.fixture(scope="module")
def concept(tiny_base: Path, tiny_subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQDIFF_CACHE", str(folder / "cache"))
        changes = {"max_train_steps": 1, "report_to": "none"}
        run_train(training_words(tiny_base, tiny_subject, folder / "out", **changes))
    return folder / "out" / "concept.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("script", long_after(1, ["test_eqdiff.py", "train_eqdiff.py"]))
def test_a_process_without_memory_ends_with_one_line_at_every_limit(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path, concept: Path, script: str
) -> None:
    """From a limit at which no library can be loaded to one at which all is done."""
    argv = training_words(tiny_base, tiny_subject, tmp_path / "out", max_train_steps=1)
    if script == "test_eqdiff.py":
        argv = ["--pretrained_model_name_or_path", str(tiny_base), "--concept", str(concept)]
        argv += ["--prompt", "a {}", "--output_dir", str(tmp_path / "out")]
    here: dict[str, Any] = dict(env=environment(EQDIFF_CACHE=str(tmp_path / "cache")), text=True)
    statuses = []
    for mebibytes in (300, 1000, 2500, 3200):
        room = mebibytes * 2**20
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *argv],
            preexec_fn=lambda room=room: resource.setrlimit(resource.RLIMIT_AS, (room, room)),
            capture_output=True,
            **here,
        )
        statuses.append(done.returncode)
        said = LIBRARYS_OWN_END.get(done.returncode)
        if said and said in done.stderr:
            continue
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert done.returncode == 2 and len(lines) == 1, (mebibytes, done.stderr[-3000:])
            assert "memory" in lines[0] and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert 2 in statuses
    assert not list(Path(tmp_path).rglob("*.partial")) or os.name == "nt"
