"""The page elsewhere: what is pushed as a Space, and what the Dockerfile builds, read as text."""

import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

from eqdiff.settings.presets import parse

HOUSE = ("app", "benchmarks", "eqdiff", "studies", "tests", "toybox")
JOBS = ("train_eqdiff.py", "test_eqdiff.py", "eval_eqdiff.py", "make_masks.py", "make_gallery.py")
JOBS += ("studies/insides/gate.py", "studies/insides/bands.py")  # what the page starts
KNOWN = {"FROM", "RUN", "WORKDIR", "ARG", "COPY", "USER", "VOLUME", "EXPOSE", "CMD"}
HAS_GIT = shutil.which("git") and (ROOT / ".git").exists()


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with what stands behind it."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.partition(" ") for line in whole.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in pairs]


DOCKER = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def told(name: str) -> list[str]:
    return [rest for each, rest in DOCKER if each == name]


def missing_imports(folder: Path, files: list[Path]) -> set[str]:
    """Modules of ours that these files import and the folder does not have."""
    names = set()
    for file in files:
        for node in ast.walk(ast.parse((folder / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    ours = {name.replace(".", "/") for name in names if name.split(".")[0] in HOUSE}
    known = {file.as_posix() for file in files}
    return {n for n in ours if f"{n}.py" not in known and f"{n}/__init__.py" not in known}


def test_the_dockerfile_has_known_instructions_a_pinned_base_and_no_root() -> None:
    assert {name for name, _ in DOCKER} <= KNOWN
    (base,) = told("FROM")
    assert re.fullmatch(r"python:3\.\d+-[a-z-]+", base), "a tag with its version, not the latest"
    *_, user = told("USER")
    assert user not in ("root", "0") and f"useradd --create-home --uid 1000 {user}" in told("RUN")
    order = [name for name, _ in DOCKER]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name in ("COPY", "RUN"))
    for run in told("RUN"):
        for command in re.findall(r"pip install [^;&]*", run):
            assert "--no-cache-dir" in command, command
    assert not [run for run in told("RUN") if re.search(r"curl|wget|sudo|chmod 777", run)]


def test_the_dockerfile_is_for_cpu_and_cuda_by_an_argument() -> None:
    assert told("ARG") == ["TORCH_INDEX="]
    (install,) = [run for run in told("RUN") if "pip install" in run]
    for index in ("", "a://place"):
        script = f'pip() {{ echo "pip $*"; }}; TORCH_INDEX={index}; {install}'
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert ("--index-url a://place torch torchvision" in done.stdout) == bool(index)
        assert done.stdout.endswith("--requirement requirements-app.txt\n")
    fails = subprocess.run(["sh", "-c", f"pip() {{ false; }}; TORCH_INDEX=a; {install}"])
    assert fails.returncode == 1


def test_what_the_dockerfile_copies_is_there_and_is_all_that_the_page_runs() -> None:
    sources = [word for rest in told("COPY") for word in shlex.split(rest)[:-1]]
    assert sources and not [name for name in sources if not (ROOT / name).exists()]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert ".git" in ignored and ".venv*" in ignored and not set(sources) & set(ignored)
    paths = [path for name in sources for path in (ROOT / name).rglob("*.py")]
    files = [path.relative_to(ROOT) for path in paths]
    files = [file for file in files if not set(map(str, file.parents)) & set(ignored)]
    files += [Path(name) for name in sources if name.endswith(".py")]
    assert set(map(Path, JOBS)) <= set(files)
    assert missing_imports(ROOT, files) == set()


def test_the_two_commands_and_the_page_are_in_the_container() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    scripts = set(re.findall(r"/eqdiff/code/(\S+\.sh)", text))
    assert scripts == {"scripts/train.sh", "scripts/test.sh", "scripts/app.sh"}
    assert all((ROOT / name).is_file() for name in scripts)
    (command,) = (json.loads(rest) for rest in told("CMD"))
    from eqdiff.settings.app import AppConfig

    config = parse(AppConfig, command[2:])
    assert config.host == "0.0.0.0" and told("EXPOSE") == [str(config.port)]


def front_matter(file: Path) -> dict[str, str]:
    _, block, _ = file.read_text(encoding="utf-8").split("---\n", 2)
    pairs = (line.partition(": ") for line in block.splitlines())
    return {name: value.strip('"') for name, _, value in pairs}


def test_the_spaces_front_page_names_what_is_there() -> None:
    facts = front_matter(ROOT / "app" / "README.md")
    assert facts["sdk"] == "gradio" and (ROOT / facts["app_file"]).is_file()
    major, minor, _ = facts["sdk_version"].split(".")
    assert (int(major), int(minor) >= 30) == (6, True), "as requirements-app.txt has it"
    assert facts["license"] == "apache-2.0" and len(facts["short_description"]) <= 60
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_GIT, reason="no git repository here")
def test_a_space_is_a_new_folder_with_all_that_its_page_runs(tmp_path: Path) -> None:
    folder = tmp_path / "a space"
    command = ["bash", str(ROOT / "scripts" / "space.sh"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"done: {folder}")
    facts = front_matter(folder / "README.md")
    assert (folder / facts["app_file"]).is_file()
    files = [path.relative_to(folder) for path in folder.rglob("*.py")]
    assert set(map(Path, JOBS)) <= set(files)
    assert missing_imports(folder, files) == set()
    assert (folder / "assets" / "toybox" / "base" / "unet").is_dir()
    assert not (folder / "tests").exists()
    needs = (folder / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch>=") for line in needs)

    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2 and again.stderr.startswith("error: ")
    assert len(again.stderr.splitlines()) == 1


def test_a_space_starts_the_page_for_whoever_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    called: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda *given: called.append(given))
    monkeypatch.setattr("sys.argv", ["space.py", "--port", "7000"])
    runpy.run_path(str(ROOT / "app" / "space.py"), run_name="__main__")
    ((_, words, environment),) = called
    assert words[1:] == [str(ROOT / "app/serve.py"), "--host", "0.0.0.0", "--port", "7000"]
    assert environment["PYTHONPATH"].split(":")[0] == str(ROOT)
