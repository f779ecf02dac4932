"""Whatever a user gets wrong gets one line that names it, exit status 2, and leaves on disk what
was there."""

import ast
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs import AS_PROCESSES, CASES, Case, World, drawing, training
from helpers import Server, script

ROOT = Path(__file__).resolve().parent.parent
NAMES = {
    "train": "train_eqdiff.py",
    "test": "test_eqdiff.py",
    "export": "export_concept.py",
    "eval": "eval_eqdiff.py",
    "masks": "make_masks.py",
    "reproduce": "studies/reproduce/run.py",
    "gallery": "make_gallery.py",
    "app": "app/serve.py",
}
PROGRAMS = {program: script(name) for program, name in NAMES.items()}


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("EQDIFF_BASE", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def world(tiny_base: Path, tiny_subject: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    found = World(tiny_base, tiny_subject, tmp_path_factory.mktemp("finished") / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        PROGRAMS["train"](training(found, max_train_steps=2, checkpointing_steps=1, log_steps=1))
        PROGRAMS["test"](drawing(found))
    return found


def state_of(folder: Path) -> dict[str, str]:
    """Every file in a folder by its content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def require_one_line(case: Case, status: object, err: str) -> None:
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert case.culprit in lines[0]
    assert "Traceback" not in err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_gets_one_line_and_harms_nothing(
    case: Case, world: World, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv, before = case.argv(world, tmp_path), state_of(world.finished)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[case.program](argv)
    require_one_line(case, stop.value.code, capsys.readouterr().err)
    assert state_of(world.finished) == before
    assert not list((tmp_path / "here").iterdir())


def test_bad_inputs_are_many_and_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 60
    assert {case.program for case in CASES} == set(PROGRAMS)
    assert len(AS_PROCESSES) == 8


@pytest.mark.slow
@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.long)])
def test_real_processes_say_the_same(
    world: World, tmp_path: Path, forks: Server, forked: bool
) -> None:
    """Forks of one started interpreter, or interpreters of their own, as a shell starts them."""
    before = state_of(world.finished)
    cases = [case for case in CASES if case.name in AS_PROCESSES]
    for case in cases:
        folder = tmp_path / case.name.replace(" ", "_")
        folder.mkdir()
        program, argv = str(ROOT / NAMES[case.program]), case.argv(world, folder)
        own = {"EQDIFF_CACHE": str(tmp_path / "cache")}
        if forked:
            job = {"script": program, "argv": argv, "path": str(ROOT), "cwd": str(folder)}
            done = forks.ask(job | {"environment": own})
            require_one_line(case, done["statuses"][0], done["err"])
        else:
            how = dict(cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            environment = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
            ended = subprocess.run([sys.executable, program, *argv], env=environment, **how)
            require_one_line(case, ended.returncode, ended.stderr)
    assert len(cases) == 8
    assert state_of(world.finished) == before


def test_a_base_named_by_the_environment_is_checked_too(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQDIFF_BASE", str(tmp_path / "no_base"))
    for program, argv in (("train", training), ("test", drawing)):
        with pytest.raises(SystemExit) as stop:
            PROGRAMS[program](argv(world, pretrained_model_name_or_path=None))
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert "no_base" in err and err.count("error: ") == 1


# -- files from strangers --------------------------------------------------------------------------

SOURCES = [
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]
UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}


def calls_in(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_and_nothing_runs_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & UNPICKLERS
    for name, call in calls_in(tree):
        given = {word.arg: word.value for word in call.keywords}
        assert name not in ("torch.load", "torch.save", "np.memmap"), f"line {call.lineno}"
        assert not name.endswith(("load_state", "save_state", "read_pickle")), f"line {call.lineno}"
        assert "allow_pickle" not in given and "trust_remote_code" not in given, (
            f"line {call.lineno}"
        )
        own = path.is_relative_to(ROOT / "tests") or path.is_relative_to(ROOT / "benchmarks")
        assert own or name not in ("eval", "exec", "compile", "os.system"), f"line {call.lineno}"
        shell = given.get("shell")
        assert shell is None or ast.unparse(shell) == "False", f"line {call.lineno}"


def test_every_model_is_asked_for_safetensors_alone() -> None:
    """Both libraries fall back to pickles unless they are told not to. Tokenizers, configurations
    and the like have no weights; the pipeline's own `from_pretrained` says it for all of its
    callers."""
    weightless = re.compile(
        r"(Config|Tokenizer|Processor|processor|cls|super\(\))\.from_pretrained$"
    )
    asked = 0
    for path in (ROOT / "eqdiff").rglob("*.py"):
        for name, call in calls_in(ast.parse(path.read_text(encoding="utf-8"))):
            if name.endswith((".from_pretrained", "Pipeline.download")) and not weightless.search(
                name
            ):
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert given.get("use_safetensors") == "True", f"{path.name}, line {call.lineno}"
                asked += 1
    assert asked >= 4


def test_a_folder_of_pickles_is_not_opened_as_a_judge(tmp_path: Path, tiny_base: Path) -> None:
    """A pickle that would run leaves no trace."""
    from transformers import CLIPConfig

    from eqdiff.errors import UserError
    from eqdiff.evaluation.metrics import load_clip

    CLIPConfig().save_pretrained(tmp_path)
    trace = tmp_path / "ran"
    (tmp_path / "pytorch_model.bin").write_bytes(f"cos\nmkdir\n(V{trace}\ntR.".encode())
    with pytest.raises(UserError, match="clip_model"):
        load_clip(str(tmp_path))
    assert not trace.exists()
