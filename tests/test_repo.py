"""The house itself: who may import whom, sizes of files and functions, prompt files, the README's
commands, paths."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eqdiff.settings.app import AppConfig
from eqdiff.settings.evaluate import EvalConfig
from eqdiff.settings.export import ExportConfig
from eqdiff.settings.gallery import GalleryConfig
from eqdiff.settings.masks import MaskConfig
from eqdiff.settings.prompts import read_prompts
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.train import TrainConfig
from studies.reproduce.settings import ReproduceConfig

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted(path for path in (ROOT / "eqdiff").rglob("*.py") if path.name != "__init__.py")
FOLDERS = ("eqdiff", "toybox", "studies", "benchmarks", "app")
SOURCES = sorted(
    [path for name in FOLDERS for path in (ROOT / name).rglob("*.py")] + list(ROOT.glob("*.py"))
)

# The ladder of wings and of the method's own files: a rung may import what stands on the rungs
# above it; within a wing files may import one another, without circles.
LADDER = [
    "frequency masking process reference wording",
    "errors",
    "attention_loss context files finite processes settings tokens",
    "base batch ours processors reader sampler",
    "attention start",
    "data model",
    "masks objective",
    "method",
    "methods",
    "concept",
    "drawing",
    "pipeline",
    "evaluation",
    "gallery",
    "sampling",
    "training",
]
LIGHT = ("settings", "errors", "wording")  # imports nothing heavy


def imports_of(path: Path) -> set[str]:
    """Full names of what a file imports anywhere in it, "package.module" where it takes a name from
    a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wing_of(path: Path) -> str:
    """The wing that a file of the package is in, or the file itself if it is the method's."""
    parts = path.relative_to(ROOT / "eqdiff").with_suffix("").parts
    return parts[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def ours_in(path: Path) -> set[str]:
    """The modules of the package that a file imports: "eqdiff.base.load"."""
    known = {module_of(other) for other in PACKAGE}
    return {
        known_as
        for name in imports_of(path)
        for known_as in (name, name.rpartition(".")[0])
        if known_as in known
    }


@pytest.mark.parametrize("path", PACKAGE, ids=module_of)
def test_imports_form_a_ladder(path):
    rungs = {name: number for number, row in enumerate(LADDER) for name in row.split()}
    assert wing_of(path) in rungs, (
        f"{path.name} has no place on the ladder: give it one in this test"
    )
    assert not [name for name in imports_of(path) if name.split(".")[0] == "toybox"]
    mine = wing_of(path)
    for name in ours_in(path):
        other = name.split(".")[1]
        assert other == mine or rungs[other] < rungs[mine], (
            f"{module_of(path)} imports {name}, which stands below it"
        )


def test_the_ladder_names_what_exists():
    named = " ".join(LADDER).split()
    assert sorted(named) == sorted({wing_of(path) for path in PACKAGE})


def test_no_file_imports_itself_by_a_detour():
    graph = {module_of(path): ours_in(path) for path in PACKAGE}
    done: set[str] = set()
    while ready := {name for name, needed in graph.items() if name not in done and needed <= done}:
        done |= ready
    assert not set(graph) - done


def test_importing_the_package_and_its_settings_imports_nothing_heavy():
    code = "import sys, eqdiff, eqdiff.settings.train; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {
        "torch",
        "torchvision",
        "numpy",
        "PIL",
        "diffusers",
        "transformers",
        "accelerate",
        "toybox",
    }
    assert not heavy & set(loaded.stdout.split())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    functions = [
        n
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert not {name: lines for name, lines in lengths.items() if lines > 60}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "assets" / "prompts").glob("*.txt")), ids=lambda path: path.name
)
def test_prompt_files_are_well_formed(path):
    prompts = read_prompts(path)
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        assert prompt.count("{}") == 1
        assert prompt == " ".join(prompt.split())
        assert len(prompt.split()) <= 20, "77 CLIP tokens must be enough, class word included"


def test_the_prompt_lists_have_the_promised_lengths():
    lengths = {
        path.stem: len(read_prompts(path)) for path in (ROOT / "assets" / "prompts").glob("*.txt")
    }
    assert lengths.pop("style") >= 24
    promised = {"live": 55, "object": 55, "preview": 4}
    assert lengths == promised | {
        "toybox": 16,
        "toybox_class": 16,
        "toybox_plain": 8,
        "toybox_style": 8,
        "toybox_preview": 4,
        "toybox_wide_plain": 10,
        "toybox_wide_style": 14,
    }


def commands_of(markdown: str) -> list[list[str]]:
    """The words of every command in the bash blocks, environment settings before it left out."""
    blocks = re.findall(
        r"^```(?:bash|sh|shell|console)\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE
    )
    commands = []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[;|]", line.removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                commands.append(words)
    return commands


def flags_known_to(words: list[str]) -> set[str] | None:
    """Every flag of the program that a command runs; None: a program that is not ours, or pytest
    behind check.sh."""
    settings = {"train.sh": TrainConfig, "train_eqdiff.py": TrainConfig}
    settings |= {"test.sh": SampleConfig, "test_eqdiff.py": SampleConfig}
    settings |= {"eval.sh": EvalConfig, "eval_eqdiff.py": EvalConfig}
    settings |= {"app.sh": AppConfig, "serve.py": AppConfig}
    settings |= {"gallery.sh": GalleryConfig, "make_gallery.py": GalleryConfig}
    settings |= {"masks.sh": MaskConfig, "make_masks.py": MaskConfig}
    settings |= {"export.sh": ExportConfig, "export_concept.py": ExportConfig}
    settings |= {"reproduce.sh": ReproduceConfig, "ablation.sh": ReproduceConfig}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name = Path(word).name
        if name in settings:
            names = [field.name for field in dataclasses.fields(settings[name])]
            return {"--help"} | {f"--{name}" for name in names} | {f"--no-{name}" for name in names}
        file = ROOT / (following.replace(".", "/") + ".py" if word == "-m" else word)
        if file.suffix == ".py" and file.is_file():
            return {"--help"} | flags_written_in(file)
    return None


def flags_written_in(file: Path) -> set[str]:
    """The flags that a program's file names, or a file that it takes arguments from."""
    files = {file}
    for name in imports_of(file):
        module, _, taken = name.rpartition(".")
        if "argument" in taken:
            files.add(ROOT / (module.replace(".", "/") + ".py"))
    texts = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
    return {flag for text in texts for flag in re.findall(r"[\"'](--[\w-]+)[\"']", text)}


def test_the_readme_runs_what_exists():
    commands = commands_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [words for words in commands if "scripts/train.sh" in words], (
        "the README must show how to train"
    )
    folders = tuple(
        f"{name}/"
        for name in (
            "scripts",
            "assets",
            "tests",
            "benchmarks",
            "studies",
            "docs",
            "toybox",
            "eqdiff",
            "app",
        )
    )
    for words in commands:
        for word in words:
            if (word.startswith(folders) or word.endswith((".py", ".sh"))) and not re.search(
                r"[*$<{]", word
            ):
                assert (ROOT / word).exists(), f"{word} in: {' '.join(words)}"
        known = flags_known_to(words)
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        assert known is None or flags <= known, f"{flags - (known or set())} in: {' '.join(words)}"


def test_readme_commands_are_split_as_a_shell_would():
    shell = "# note\nA=1 bash scripts/train.sh d 'cat toy' \\\n  --seed 1  # why\ncd a && ls\n"
    text = f"x\n```bash\n{shell}```\n```python\nno\n```"
    assert commands_of(text) == [
        ["bash", "scripts/train.sh", "d", "cat toy", "--seed", "1"],
        ["cd", "a"],
        ["ls"],
    ]
    assert "--no-rra" in flags_known_to(["bash", "scripts/test.sh", "--no-rra"])
    assert flags_known_to(["python", "-m", "toybox.make_subjects"]) == {"--help", "--output"}
    assert flags_known_to(["git", "clone", "--depth", "1"]) is None


def test_the_table_of_paper_and_release_is_whole_and_names_real_tests():
    lines = (ROOT / "docs" / "paper_vs_release.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if re.match(r"\| \d", line)
    ]
    assert [int(row[0]) for row in rows] == list(range(1, 55))
    assert {len(row) for row in rows} == {8}
    assert {row[5] for row in rows} == {"yes", "part", "no"}
    assert sum(row[5] == "yes" for row in rows) >= 35
    for number, *_, both, test, remark in rows:
        assert both == "yes" or remark, f"row {number} is not reproduced: say why"
        assert both == "no" or test != "-", f"row {number}: which test shows it?"
        if test != "-":
            file, name = test.strip("`").split("::")
            assert f"def {name}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), (
                f"row {number}"
            )


def test_the_table_of_complaints_is_whole_and_names_real_tests():
    lines = (ROOT / "docs" / "complaints.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if re.match(r"\| \d", line)
    ]
    assert [int(row[0]) for row in rows] == list(range(1, 21))
    for number, *_, test in rows:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), (
            f"row {number}"
        )


def text_files() -> list[Path]:
    """Files of the repository that hold text, without git's help: a copy of it may have none."""
    folders = (*FOLDERS, "tests", "scripts", "docs", "assets", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [path for path in ROOT.glob("*") if path.name != ".git"]  # a file in a worktree
    suffixes = {"", ".py", ".sh", ".md", ".txt", ".toml", ".json", ".yml", ".yaml", ".svg"}
    return [
        path
        for path in files
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
    ]


def test_no_paths_of_somebodys_machine():
    pattern = re.compile(r"(?<![\w./])/(?:work|tmp|root|home|Users|mnt|opt)/\w+")
    texts = {
        path.relative_to(ROOT): path.read_text(encoding="utf-8", errors="replace")
        for path in text_files()
    }
    assert len(texts) > 40
    found = {str(path): pattern.findall(text) for path, text in texts.items()}
    assert not {path: paths for path, paths in found.items() if paths}


def test_the_bundled_base_is_small():
    sizes = [
        path.stat().st_size for path in (ROOT / "assets" / "toybox").rglob("*") if path.is_file()
    ]
    assert sum(sizes) <= 40_000_000
