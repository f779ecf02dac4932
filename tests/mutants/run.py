"""Breaks the method one line at a time, and looks whether the tests that claim to notice do: bash
scripts/mutants.sh

Each breakage of breakages/ is made in a scratch copy of the working tree, one for each of --jobs,
never in the tree itself; there the tests named for it run. Before any, the same tests run unbroken.
Exit status 1: a breakage stayed green, or its line is no longer there, or the tests are red without
it; a table says which.
"""

import argparse
import contextlib
import functools
import importlib
import io
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from breakages import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent.parent
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", "outputs", "runs", "__pycache__", ".*_cache", "*.log"
)
LIMIT = 300  # seconds for the tests of one breakage
FORK = multiprocessing.get_context("fork")
# imported once and shared by forks: half a minute of imports for each breakage would be most of the
# time
HEAVY = (
    "torch", "torchvision.transforms.v2", "accelerate", "cv2", "safetensors.torch", "pytest",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.modeling_clip",
)  # fmt: skip
CAUGHT, GREEN, BROKEN, LATE, ROTTEN = (
    "caught",
    "STAYED GREEN",
    "DOES NOT RUN",
    "TOO LATE",
    "NO SUCH LINE",
)
# not a breakage of the method, but of the program: any test would notice
TRIVIAL = re.compile(r" - (NameError|UnboundLocalError|SyntaxError|IndentationError|ImportError)\b")
STATUS = {0: GREEN, 1: CAUGHT, None: LATE}  # of pytest; others: it could not even collect the tests


class Outcome(NamedTuple):
    mutant: Mutant
    result: str
    seconds: float
    last_line: str


def _pytest(folder: Path, tests: Sequence[str], output: Path) -> None:
    """In a fork: these tests of a copy of the tree; the exit status is pytest's."""
    import pytest

    sys.dont_write_bytecode = (
        True  # two breakages of a file within a second look alike to the cache of bytecode
    )
    os.environ["COLUMNS"] = "400"  # the line of a failure ends with its error
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)  # processes that a test starts import the copy too
    sys.path[:] = [
        path
        for path in sys.path
        if path and Path(path).resolve() not in (ROOT, *ROOT.glob("tests/**"))
    ]
    with (
        output.open("w") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        words = [
            "-x",
            "-q",
            "--no-header",
            "--tb=no",
            "-p",
            "no:cacheprovider",
            "-m",
            "",
            f"--rootdir={folder}",
        ]
        status = pytest.main([*words, *tests])
    os._exit(int(status))


def run_tests(folder: Path, tests: Sequence[str], limit: float) -> tuple[int | None, str]:
    """Exit status of pytest, None beyond `limit` seconds, and the line that says what failed, or
    its last."""
    output = folder / ".pytest_output"
    output.unlink(missing_ok=True)
    child = FORK.Process(target=_pytest, args=(folder, tests, output))
    child.start()
    child.join(limit)
    if child.exitcode is None:
        child.kill()
        child.join()
        return None, f"no end within {limit} s"
    lines = output.read_text().strip().splitlines() if output.is_file() else []
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return child.exitcode, (failed or lines or ["no output"])[-1 if not failed else 0]


def copy_of_tree(parent: Path) -> Path:
    """A new scratch copy of the working tree in `parent`."""
    folder = Path(tempfile.mkdtemp(dir=parent)) / "tree"
    return Path(shutil.copytree(ROOT, folder, ignore=NOT_COPIED))


@functools.cache
def own_copy(parent: Path) -> Path:
    """The copy of the tree that belongs to this process."""
    return copy_of_tree(parent)


def attempt(parent: Path, mutant: Mutant) -> Outcome:
    """Breaks this process's copy of the tree, runs the mutant's tests, mends it."""
    folder = own_copy(parent)
    path, started = folder / mutant.file, time.monotonic()
    whole = path.read_text(encoding="utf-8")
    if whole.count(mutant.old) != 1:
        return Outcome(mutant, ROTTEN, 0.0, f"{mutant.file} has it {whole.count(mutant.old)} times")
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        status, line = run_tests(folder, mutant.tests, LIMIT)
    finally:
        path.write_text(whole, encoding="utf-8")
    result = BROKEN if TRIVIAL.search(line) else STATUS.get(status, BROKEN)
    return Outcome(mutant, result, time.monotonic() - started, line)


def table(outcomes: Sequence[Outcome]) -> str:
    """A line a mutant: what became of it, the file, which test noticed, seconds."""
    rows = []
    for mutant, result, seconds, line in outcomes:
        test = line.partition("::")[2].split(" - ")[0] if result == CAUGHT else line
        rows.append(
            f"{result:12}  {seconds:5.1f} s  {Path(mutant.file).name:18}  {mutant.name}: {test}"
        )
    return "\n".join(rows)


def attempts(mutants: Sequence[Mutant], parent: Path, jobs: int) -> Iterator[Outcome]:
    """What became of each, `jobs` of them at a time, with a line of progress each."""
    begun = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=FORK) as pool:
        running = [pool.submit(attempt, parent, mutant) for mutant in mutants]
        for number, done in enumerate(as_completed(running), 1):
            outcome = done.result()
            left = (time.monotonic() - begun) / number * (len(mutants) - number)
            line = f"{number}/{len(mutants)} {outcome.result}: {outcome.mutant.name}"
            print(f"{line}; {left:.0f} s left", file=sys.stderr)
            yield outcome


def run(mutants: Sequence[Mutant], jobs: int) -> int:
    for name in HEAVY:
        importlib.import_module(name)

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        status, line = run_tests(copy_of_tree(parent), tests, 10 * LIMIT)
        print(f"unbroken, the {len(tests)} tests: {line}", flush=True)
        if status:
            print("red without any breakage: mend that first")
            return 1
        outcomes = sorted(
            attempts(mutants, parent, jobs), key=lambda outcome: mutants.index(outcome.mutant)
        )

    print(table(outcomes))
    bad = [outcome for outcome in outcomes if outcome.result != CAUGHT]
    print(
        f"{len(outcomes) - len(bad)} of {len(outcomes)} mutants caught "
        f"in {time.monotonic() - started:.0f} s"
    )
    return 1 if bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="breakages whose name or file contains one of these",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        help="breakages at a time, each in a copy of the tree of its own (default %(default)s)",
    )
    args = parser.parse_args(argv)
    chosen = [
        m
        for m in MUTANTS
        if not args.only or any(part in f"{m.file} {m.name}" for part in args.only)
    ]
    if not chosen:
        parser.error(f"--only {' '.join(args.only)}: no breakage of that name")
    return run(chosen, args.jobs)


if __name__ == "__main__":
    sys.exit(main())
