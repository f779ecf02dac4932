"""The shell scripts, with a stand-in for Python: what they run, which Python they take, how they
fail."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
from helpers import environment, long_after

ROOT = Path(__file__).resolve().parent.parent
# satisfies every requirement ("-"), sees $GPUS GPUs ("-c"), else prints what it was asked to run
STAND_IN = """#!/bin/sh
case $1 in
  -) exit 0 ;;
  -c) echo "${GPUS:-0}" ;;
  *) printf '%s\\n' "cpu=${ACCELERATE_USE_CPU:-}" "$@" ;;
esac
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of scripts/ and of the requirements in a folder with a blank in its name; `python` is
    the stand-in."""
    root = tmp_path / "a house"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, root)
    (root / "python").write_text(STAND_IN)
    (root / "python").chmod(0o755)
    return root


def bash(command: str, house: Path, **env: str) -> subprocess.CompletedProcess:
    """Runs bash somewhere else, `$house` being the copy, PYTHON the stand-in unless given."""
    own = {"house": str(house), "PYTHON": str(house / "python"), "OMP_NUM_THREADS": "1"}
    env = {"PATH": os.environ["PATH"], **own, **env}
    return subprocess.run(
        ["bash", "-c", command], cwd=house.parent, env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ("train.sh", ["train_eqdiff.py"]),
        ("train.sh photos", ["train_eqdiff.py", "--instance_data_dir", "photos"]),
        (
            "train.sh 'my photos' 'cat toy' --seed 1 --no-rra",
            [
                "train_eqdiff.py",
                "--instance_data_dir",
                "my photos",
                "--class_word",
                "cat toy",
                "--seed",
                "1",
                "--no-rra",
            ],
        ),
        (
            "train.sh photos --seed 1",
            ["train_eqdiff.py", "--instance_data_dir", "photos", "--seed", "1"],
        ),
        ("train.sh --seed 1", ["train_eqdiff.py", "--seed", "1"]),
        ("train.sh -h", ["train_eqdiff.py", "-h"]),
        (
            "masks.sh 'my photos' 'cat toy' --overwrite",
            [
                "make_masks.py",
                "--instance_data_dir",
                "my photos",
                "--class_word",
                "cat toy",
                "--overwrite",
            ],
        ),
        ("test.sh", ["test_eqdiff.py"]),
        ("test.sh --prompt 'a {} at sea'", ["test_eqdiff.py", "--prompt", "a {} at sea"]),
        (
            "test.sh 'my concept' --no-rra",
            ["test_eqdiff.py", "--concept", "my concept", "--no-rra"],
        ),
        ("export.sh", ["export_concept.py"]),
        (
            "export.sh out --compress 15",
            ["export_concept.py", "--concept", "out", "--compress", "15"],
        ),
        ("app.sh --port 7999", ["app/serve.py", "--port", "7999"]),
        ("gallery.sh", ["make_gallery.py"]),
        (
            "gallery.sh 'a run' b --no-embed",
            ["make_gallery.py", "--runs", "a run", "b", "--no-embed"],
        ),
        ("eval.sh", ["eval_eqdiff.py"]),
        (
            "eval.sh 'my samples' b --pick",
            ["eval_eqdiff.py", "--samples", "my samples", "b", "--pick"],
        ),
    ],
)
def test_the_first_words_are_folder_and_class_or_concept_and_the_rest_goes_through(
    house, given, run
):
    done = bash(f'bash "$house"/scripts/{given}', house)
    assert done.stdout.splitlines() == ["cpu=", str(house / run[0]), *run[1:]]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("gpus", "cpu"), [("0", "true"), ("2", "")])
def test_several_processes_are_started_by_torchrun_and_share_gpus_or_the_cpu(house, gpus, cpu):
    done = bash('bash "$house"/scripts/train.sh photos', house, EQDIFF_PROCESSES="2", GPUS=gpus)
    run = [str(house / "scripts" / "launch.py"), "2", str(house / "train_eqdiff.py")]
    assert done.stdout.splitlines() == [f"cpu={cpu}", *run, "--instance_data_dir", "photos"]


@pytest.mark.parametrize("processes", ["0", "two", "-1", "3"])
def test_a_wrong_number_of_processes_is_one_line_and_status_2(house, processes):
    done = bash('bash "$house"/scripts/test.sh', house, EQDIFF_PROCESSES=processes, GPUS="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert processes in done.stderr


def test_no_python_at_all_is_one_line_and_status_2(house, tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname", "cat"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    done = bash('bash "$house"/scripts/train.sh', house, PATH=str(tmp_path / "bin"), PYTHON="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no Python 3.10 or newer here: install one, or set PYTHON to its path, "
        "and run again\n"
    )
    assert not (house / ".venv").exists()


def test_the_requirements_decide_which_python_is_taken(house):
    for name, lines in {
        "low": "pytest>=1",
        "high": "pytest>=999",
        "none": "no-such-package",
        "nested": "-r low",
        "elsewhere": "no-such-package; python_version < '3.0'",
    }.items():
        (house / name).write_text(f"# why\n{lines}  # how\n")
    (house / "bad").write_text("-r low\n-r high\n")
    names = ("low", "high", "none", "nested", "elsewhere", "bad")
    ask = f"eqdiff_satisfies '{sys.executable}'"
    tries = " ".join(f'{ask} "$house/{name}"; echo {name} $?;' for name in names)
    done = bash(f'source "$house"/scripts/env.sh; {tries}', house)
    assert done.stdout.splitlines() == [
        "low 0", "high 1", "none 1", "nested 0", "elsewhere 0", "bad 1"
    ]  # fmt: skip


# an environment without what the requirements ask; pip notes what it is told and where, and ends
# with $PIP
LACKING = """#!/bin/sh
[ "$1" = - ] && exit 1
[ "$3" = --version ] && exit 0
[ "$2" = compileall ] && { echo "$@" >"$house/compiled"; exit 1; }
[ "$2" = pip ] || exec echo "$@"
shift 2
printf '%s\n' "$(pwd)" "$@" >"$house/pip"
echo "$SAYS"
exit "${PIP:-0}"
"""


def write_lacking(python: Path, house: Path) -> None:
    """The active Pythons lack it too."""
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(LACKING)
    python.chmod(0o755)
    (house / "requirements.txt").write_text("no-such-package\n")


@pytest.mark.parametrize(
    "says",
    [
        "ERROR: no luck",
        # without a network: what builds the package cannot be had
        "  error: subprocess-exited-with-error\n      ERROR: no luck\n  [end of output]\n"
        "note: This is an issue.",
    ],
)
def test_a_failed_installation_is_one_line_that_names_the_log(house, says):
    write_lacking(house / ".venv" / "bin" / "python", house)
    how = dict(PYTHON=sys.executable, PIP="1", SAYS=says)
    done = bash('source "$house"/scripts/env.sh; echo "status $?"', house, **how)
    assert done.stdout == "status 2\n"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "(ERROR: no luck)" in errors[0]
    assert str(house / ".venv" / "install.log") in errors[0]


def test_an_environment_of_ours_gets_the_requirements_and_the_repository(house):
    write_lacking(house / ".venv" / "bin" / "python", house)
    done = bash('bash "$house"/scripts/train.sh photos', house, PYTHON=sys.executable)
    assert done.stdout == f"{house / 'train_eqdiff.py'} --instance_data_dir photos\n", done.stderr
    where, command, *words = (house / "pip").read_text().splitlines()
    assert (where, command) == (str(house), "install")
    assert words[-4:] == ["-r", str(house / "requirements.txt"), "-e", "."]
    assert "--no-compile" in words
    assert (house / "compiled").read_text().startswith("-m compileall -q -j 0 ")


def test_an_environment_that_is_not_ours_is_read_alone(house):
    """The one that satisfies the requirements runs the script; of one that does not, only that is
    found out."""
    calls = 'echo "$1 $2" >>"$house/calls"\n'
    (house / "python").write_text(STAND_IN.replace("case", f"{calls}case", 1))
    write_lacking(house / "other" / "python3", house)
    other = house / "other" / "python3"
    other.write_text(LACKING.replace("\n", f"\n{calls}", 1))
    path = f"{other.parent}:{os.environ['PATH']}"

    assert bash('bash "$house"/scripts/train.sh', house, PATH=path).returncode == 0
    script = house / "train_eqdiff.py"
    assert (house / "calls").read_text().splitlines() == [
        f"- {house / 'requirements.txt'}",
        f"{script} ",
    ]
    assert not (house / ".venv").exists()

    (house / "calls").unlink()
    (house / ".venv" / "bin").mkdir(parents=True)
    shutil.move(house / "python", house / ".venv" / "bin" / "python")
    bash('bash "$house"/scripts/train.sh', house, PATH=path, PYTHON="")
    asked = f"- {house / 'requirements.txt'}"
    assert (house / "calls").read_text().splitlines() == [asked, asked, f"{script} "]
    assert not (house / "pip").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(("before", "after"), [("", ""), ("/somewhere", ":/somewhere")])
def test_scripts_import_from_the_repository_installed_or_not(house, processes, before, after):
    (house / "python").write_text(STAND_IN.replace("cpu=", "path=${PYTHONPATH:-} cpu="))
    given = {"EQDIFF_PROCESSES": processes, **({"PYTHONPATH": before} if before else {})}
    done = bash('bash "$house"/scripts/train.sh', house, **given)
    assert done.stdout.startswith(f"path={house}{after} cpu=")
    sourced = bash('source "$house"/scripts/env.sh; echo "path=${PYTHONPATH:-}"', house, **given)
    assert sourced.stdout == f"path={before}\n", (
        "the shell of somebody who sources env.sh is left alone"
    )


# user, nice, system, idle, waiting, irq, softirq and steal, in hundredths of a second
IDLE = "0 0 0 100 0 0 0 0"


@pytest.mark.parametrize(
    ("cores", "busy"),
    [
        ([IDLE, IDLE], 0),
        (["90 0 8 2 0 0 0 0", IDLE], 1),
        (["60 0 0 40 0 0 0 0", "0 0 50 50 0 0 0 0"], 1),  # what moves from one to the other
        (["20 0 2 78 0 0 0 0", IDLE], 0),
        (["0 99 1 0 0 0 0 0", IDLE], 0),  # nice: it gives way
        (["0 0 0 9 90 0 1 0", IDLE], 0),  # waits for a disk
        (["30 0 20 0 0 0 0 50", "100 0 0 0 0 0 0 0"], 2),  # another machine's share is not ours
    ],
)
def test_busy_cores_are_counted(house, cores, busy):
    def reading(rows: list[str], start: int) -> str:
        numbers = [[str(start + int(word)) for word in row.split()] for row in rows]
        lines = [f"cpu{core} {' '.join(row)} 0 0" for core, row in enumerate(numbers)]
        return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 5", "ctxt 7"])

    before, after = reading(["0 " * 8] * 2, 1000), reading(cores, 1000)
    command = 'set -euo pipefail; source "$house"/scripts/env.sh; eqdiff_busy "$before" "$after"'
    done = bash(command, house, before=before, after=after)
    assert done.stdout.split() == [str(busy), "2"], done.stderr


@pytest.mark.parametrize(("busy", "threads"), [(0, ""), (1, "1"), (2, "1")])
def test_threads_are_left_to_whoever_has_the_cores_unless_you_say(house, busy, threads):
    """The first line is what a script would have; a machine of which nproc sees a part is left."""
    say = 'eqdiff_threads; echo "<${OMP_NUM_THREADS:-}>"'
    count = f"eqdiff_busy() {{ echo {busy} 2; }}; nproc() {{ echo $seen; }}"
    command = f'set -euo pipefail; source "$house"/scripts/env.sh; {count}; {say}'
    done = bash(command, house, OMP_NUM_THREADS="", seen="2")
    assert done.stdout == f"<{threads}>\n", done.stderr
    note = f"note: {busy} of 2 cores are busy: torch gets threads for {threads} "
    assert done.stderr.startswith(note) if busy else not done.stderr

    assert bash(command, house, OMP_NUM_THREADS="", seen="1").stdout == "<>\n"
    assert bash(command, house, OMP_NUM_THREADS="5", seen="2").stdout == "<5>\n"


def test_sourcing_leaves_the_shell_alone_and_exports_python(house):
    done = bash(
        'set -euo pipefail; source "$house"/scripts/env.sh; pwd; sh -c \'echo "$PYTHON"\'', house
    )
    assert done.stdout.splitlines() == [str(house.parent), str(house / "python")]


# one process for each core, which take tests from each other
PYTEST = "-m pytest --quiet --numprocesses logical --maxprocesses 8 --dist worksteal"


def test_check_lints_before_it_tests(house):
    done = bash('bash "$house"/scripts/check.sh -k gate', house)
    ran = [line for line in done.stdout.splitlines() if line != "cpu="]
    assert (
        " ".join(ran) == "-m ruff check --quiet . -m ruff format --diff --quiet . "
        f"{PYTEST} --durations 20 --durations-min 8 -k gate"
    )


def test_the_fast_check_leaves_out_what_is_marked_slow_and_names_what_has_become_slow(house):
    done = bash('bash "$house"/scripts/check.sh --fast -k gate', house)
    ran = " ".join(line for line in done.stdout.splitlines() if line != "cpu=")
    assert ran.startswith(f"-m ruff check --quiet . -m ruff format --diff --quiet . {PYTEST} ")
    assert ran.endswith("-m not long and not slow --durations 10 --durations-min 3 -k gate")


def test_what_is_left_out_is_said_in_a_line_for_each_mark(monkeypatch):
    monkeypatch.setattr(conftest, "LEFT_OUT", {"long": Counter(), "slow": Counter()})

    def test(file: str, *marks: str) -> SimpleNamespace:
        return SimpleNamespace(
            path=Path(file), get_closest_marker=lambda mark: mark in marks or None
        )

    said: list[str] = []
    reporter = SimpleNamespace(write_line=said.append, getreports=lambda _: [])
    conftest.pytest_terminal_summary(reporter)
    assert not said
    conftest.pytest_deselected(
        [test("test_a.py", "slow"), test("test_b.py"), test("test_c.py", "slow")]
    )
    conftest.pytest_deselected([test("test_a.py", "slow"), test("test_d.py", "slow", "long")])
    handed_over = SimpleNamespace(config=SimpleNamespace(workeroutput={}))
    conftest.pytest_sessionfinish(handed_over)
    conftest.LEFT_OUT["slow"].clear()
    for _ in range(2):  # each process of pytest-xdist has counted all tests
        conftest.pytest_testnodedown(handed_over.config, None)
    conftest.pytest_terminal_summary(reporter)
    assert said == [
        "left out: 1 long tests (d 1); bash scripts/check.sh --long runs them",
        "left out: 3 slow tests (a 2, c 1); bash scripts/check.sh runs them",
    ]


@pytest.mark.parametrize("status", [0, 1])
def test_the_long_check_runs_every_part_and_keeps_their_figures(house, status):
    """Also when the first of them fails."""
    (house / "docs").mkdir()
    stand_in = house / "python"
    says = 'printf "1 word in 2 s\\nfigure: x: 5\\n3 tests passed in 4 s\\n"'
    failing = f'[ "$2" != pytest ] || {{ {says}; exit {status}; }}\n'
    stand_in.write_text(STAND_IN.replace("case $1 in", failing + "case $1 in"))
    done = bash('bash "$house"/scripts/check.sh --long -k gate', house)
    assert done.returncode == status
    log = (house / "docs" / "check_long.log").read_text()
    words = re.sub(
        r"in \d+ s$", "in N s", log.replace("cpu=\n", ""), flags=re.MULTILINE
    ).splitlines()
    assert words == [
        "== tests, the long ones too", "figure: x: 5", "3 tests passed in N s",
        f"-- tests, the long ones too: {'FAILED' if status else 'passed'} in N s",
        "== mutants", "tests/mutants/run.py", "-- mutants: passed in N s",
        "== soak", "-m", "benchmarks.soak", "--json", "benchmarks/soak.json",
        "-- soak: passed in N s",
    ]  # fmt: skip


# a Python 3.10 that makes environments of copies of itself; pip ends with $PIP, the tests with
# $TESTS
MAKER = """#!/bin/sh
case "$1 $2" in
  "-m venv") mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  "-m pip") [ "$3" = install ] && echo "$@" >> "$house/pip"
            [ "$3" != install ] || exit "${PIP:-0}" ;;
  "-m pytest") echo "$@" >> "$house/tests"; echo "3 passed in 1s"; exit "${TESTS:-0}" ;;
  "- ") echo "Python 3.10, torch 2" ;;
esac
"""


def check_versions(
    house: Path, words: str, *, python: str = "python3.10", **env: str
) -> subprocess.CompletedProcess:
    (house / "bin").mkdir()
    for tool in ("bash", "dirname", "sh", "cp", "mkdir", "tail", "cat"):
        (house / "bin" / tool).symlink_to(shutil.which(tool))
    (house / "bin" / python).write_text(MAKER)
    (house / "bin" / python).chmod(0o755)
    env = {
        "PATH": str(house / "bin"),
        "PYENV_ROOT": str(house / "nothing"),
        "HOME": str(house),
    } | env
    return bash(f'bash "$house"/scripts/check_versions.sh {words}', house, **env)


def test_both_ends_are_installed_and_tested_with_a_line_each(house):
    done = check_versions(house, "-k gate")
    oldest, newest = done.stdout.splitlines()
    assert oldest.startswith("oldest (Python 3.10, torch 2): 3 passed in 1s; ")
    assert newest.startswith("newest (Python 3.10, torch 2): 3 passed in 1s; ")
    assert (done.returncode, done.stderr) == (0, "")
    assert (house / "tests").read_text().splitlines() == [f"{PYTEST} -k gate"] * 2
    first, second = (house / "pip").read_text().splitlines()
    assert first.endswith("/requirements-oldest.txt") and second.endswith(
        "/requirements-dev.txt pillow-heif"
    )


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"TESTS": "1"}, "newest (Python 3.10, torch 2): 3 passed"),
        ({"PIP": "1"}, "newest: not run: pip could not install requirements-dev.txt pillow-heif"),
        (
            {"python": "python3.9"},
            "newest: not run: no Python with the module venv among 3.14 3.13",
        ),
    ],
)
def test_an_end_that_fails_or_cannot_be_run_is_status_1_and_its_line_says_so(house, given, line):
    done = check_versions(house, "newest", **given)
    assert done.stdout.startswith(line) and done.stdout.count("\n") == 1
    assert done.returncode == 1


def test_the_oldest_end_is_pinned_for_every_requirement():
    from packaging.requirements import Requirement

    def needs(name: str) -> dict[str, Requirement]:
        lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
        return {need.name: need for need in map(Requirement, filter(None, lines))}

    pins = needs("requirements-oldest.txt")
    for name, need in needs("requirements.txt").items():
        (pin,) = pins[name].specifier
        (low,) = [part for part in need.specifier if part.operator == ">="]
        assert pin.operator == "==" and pin.version in need.specifier
        assert pin.version.startswith(low.version), f"{name}: {pin} is not the oldest of {need}"


# -- modules of others in the folder where a script is started -------------------------------------

# a newcomer adds a row: what Python imports on its way, by us or by its libraries
TRAPS = (
    "packaging", "ensurepip", "venv", "pip", "torch", "runpy", "eqdiff", "toybox", "json",
    "importlib", "site", "argparse", "numpy", "accelerate", "sitecustomize", "usercustomize",
)  # fmt: skip


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder of photos where a stranger left modules that note that they were run."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in TRAPS:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'sprung')!r}, 'a').write({name!r} + chr(10))\n"
        )
    return folder


SAFE = long_after(1, ["", "1"])  # of PYTHONSAFEPATH


@pytest.mark.parametrize("safe", SAFE)
@pytest.mark.parametrize(
    "script", long_after(5, ["train", "test", "eval", "masks", "export", "ablation"])
)
def test_no_module_in_the_working_directory_is_run(
    trapped: Path, tmp_path: Path, script: str, safe: str
) -> None:
    env = environment(PYTHON=sys.executable, PYTHONSAFEPATH=safe)
    env.pop("PYTHONPATH")
    command = ["bash", str(ROOT / "scripts" / f"{script}.sh"), "--help"]
    done = subprocess.run(command, cwd=trapped, env=env, capture_output=True, text=True)
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("safe", SAFE)
def test_nor_by_several_processes(trapped: Path, tmp_path: Path, safe: str) -> None:
    env = environment(PYTHON=sys.executable, EQDIFF_PROCESSES="2", PYTHONSAFEPATH=safe)
    env.pop("PYTHONPATH")
    command = ["bash", str(ROOT / "scripts" / "train.sh"), "nowhere"]
    done = subprocess.run(command, cwd=trapped, env=env, capture_output=True, text=True)
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()
    assert done.returncode == 2, done.stderr
    assert "error: --instance_data_dir nowhere" in done.stderr


def test_nor_while_an_environment_is_made(trapped: Path, tmp_path: Path, house: Path) -> None:
    """With a Python that lacks what is needed: `venv` and `pip` are looked for."""
    write_lacking(house / ".venv" / "bin" / "python", house)
    command = f'cd "{trapped}" && bash "$house"/scripts/train.sh; true'
    bash(command, house, PYTHON=sys.executable)
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()
    bash(f'cd "{trapped}"; source "$house"/scripts/env.sh; eqdiff_base_python', house)
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()


def test_a_relative_python_is_found_from_its_own_folder(house: Path) -> None:
    done = bash('cd "$house"; bash scripts/train.sh photos', house, PYTHON="./python")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        str(house / "train_eqdiff.py"), "--instance_data_dir", "photos",
    ]  # fmt: skip
