"""docs/extending.md: every diff of it applies to a copy of the package, is small, and trains."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT, TINY, Server, flags, long_after

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
MOST_FILES = 3


def sections() -> dict[str, tuple[str, list[str]]]:
    """Title -> its diff, and the flags of its command."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        diff = re.search(r"```diff\n(.*?)```", section, re.DOTALL)
        command = re.search(r"^python train_eqdiff.py (.*)$", section, re.MULTILINE)
        if diff:
            assert command, "each diff has a command that uses it"
            found[section.splitlines()[0]] = (diff.group(1), command.group(1).split())
    return found


EXAMPLES = sections()


def changed(diff: str) -> set[str]:
    return set(re.findall(r"^\+\+\+ b/(\S+)", diff, re.MULTILINE))


def test_the_page_has_its_examples_and_none_touches_more_than_three_files() -> None:
    assert len(EXAMPLES) == 5
    for title, (diff, _) in EXAMPLES.items():
        assert 1 <= len(changed(diff)) <= MOST_FILES, title


def test_the_table_says_the_size_of_each_change() -> None:
    rows = re.findall(r"^\| .* \| (\d) files, \+(\d+) -(\d+) lines \|$", PAGE, re.MULTILINE)
    sizes = []
    for diff, _ in EXAMPLES.values():
        lines = [line for line in diff.splitlines() if not line.startswith(("+++", "---"))]
        added = sum(line.startswith("+") for line in lines)
        removed = sum(line.startswith("-") for line in lines)
        sizes.append((str(len(changed(diff))), str(added), str(removed)))
    assert rows == sizes


@pytest.mark.parametrize("title", long_after(2, EXAMPLES))
def test_an_example_applies_and_trains(
    title: str, tiny_base: Path, tiny_subject: Path, tmp_path: Path, forks: Server
) -> None:
    diff, words = EXAMPLES[title]
    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "eqdiff", copy / "eqdiff", ignore=ignore)
    shutil.copy(ROOT / "train_eqdiff.py", copy)
    (copy / "assets").symlink_to(ROOT / "assets")
    patch = ["git", "apply", "--unidiff-zero", "-"]
    subprocess.run(patch, cwd=copy, input=diff, text=True, check=True)

    given = {
        **TINY,
        "max_train_steps": 2,
        "report_to": "none",
        "class_word": "dog toy",
        "pretrained_model_name_or_path": tiny_base,
        "instance_data_dir": tiny_subject,
        "output_dir": tmp_path / "out",
    }
    done = forks.ask(
        {
            "script": str(copy / "train_eqdiff.py"),
            "argv": [*flags(given), *words],
            "path": str(copy),
            "environment": {"EQDIFF_CACHE": str(tmp_path / "cache")},
        }
    )
    assert done["statuses"] == [0], done["err"]
    name = words[0].removeprefix("--")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert str(config[name]) in (words[1], str([float(w) for w in words[1:] if w[0].isdigit()]))
