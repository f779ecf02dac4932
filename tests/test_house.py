"""How the code reads: the measures are what they say, and the tidied parts of the house keep to
them."""

import ast
import re
import subprocess
import sys

import pytest

from benchmarks.house_measures import (
    LONGEST,
    ROOT,
    groups_of,
    imports_inside,
    measure,
    settings_fields,
    settings_read,
    sources_now,
)

SETTINGS = """
class Group:
    rate: float = 1.0

class Recipe:
    word: str = ""

class TrainConfig(Group, Recipe):
    steps: int = 1
"""

READER = """
def read(config, run, other):
    run.config.steps = 5
    return config.rate, run.recipe.word, run.settings.unknown, other.steps
"""

FUNCTIONS = '''\
import os


def first(x, y):
    """Says one thing.

    And another.
    """
    import sys

    a, b = x, y
    c, d = divmod(a, b)
    return [n for n in (c if d else b)]


class Holder:
    def second(self):
        return os, lambda: 1
'''

# parts that keep to the limits
TIDY = ("eqdiff, all", "root scripts", "toybox", "studies", "benchmarks")
USED = ("eqdiff, all", "root scripts")  # what runs on a user's machine
LEAST_AIR = 5.0  # blank lines per 100 lines in functions
MOST_TUPLES = 5.0  # statements like `a, b = x, y` per 1,000 lines
MOST_IMPORTS = 15  # inside functions, over all that is used


def test_the_measures_are_what_they_say():
    found = measure({"a.py": FUNCTIONS})
    assert (found.files, found.lines, found.median_file) == (1, 18, 18)
    assert found.long_lines == 0
    assert found.blank_lines == pytest.approx(100 * 2 / 12)  # 10 lines of first, 2 of second
    assert found.air_in_code == pytest.approx(100 * 1 / 8)
    assert found.tuples == pytest.approx(1000 / 18)  # divmod gives one value, which is unpacked
    assert found.packed == pytest.approx(1000 * 2 / 18)
    assert (found.imports, found.docstrings, found.median_function) == (1, 0.5, 6)
    assert measure({"a.py": "x = 1\n" + "#" * (LONGEST + 1)}).long_lines == 0.5


def test_settings_count_once_a_file_where_a_settings_object_is_read():
    sources = {"eqdiff/settings/train.py": SETTINGS, "eqdiff/a.py": READER, "toybox/a.py": READER}
    assert settings_fields(sources) == {"rate", "word", "steps"}
    assert settings_read(sources) == {"eqdiff/a.py": {"rate", "word", "steps"}}


@pytest.mark.slow
def test_one_command_prints_the_measures_and_an_unknown_revision_is_one_line():
    command = [sys.executable, str(ROOT / "benchmarks" / "house_measures.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "eqdiff, all" in printed and "settings read" in printed
    refused = subprocess.run([*command, "--before", "no-such"], capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.startswith("error: git has no revision")


@pytest.mark.parametrize("name", TIDY)
def test_the_tidy_parts_have_air_and_no_long_line(name):
    files = groups_of(sources_now())[name]
    found = measure(files)
    lines = [(path, line) for path, text in files.items() for line in text.splitlines()]
    assert not [(path, line) for path, line in lines if len(line) > LONGEST]
    assert found.blank_lines >= LEAST_AIR
    assert found.tuples <= MOST_TUPLES


def test_few_imports_stand_inside_functions():
    groups = groups_of(sources_now())
    texts = {path: text for name in USED for path, text in groups[name].items()}
    counts = {path: len(imports_inside(ast.parse(text))) for path, text in texts.items()}
    assert sum(counts.values()) <= MOST_IMPORTS, {path: n for path, n in counts.items() if n}


def test_no_test_forks_the_process_that_runs_it():
    """A fork that hangs keeps the line of pytest-xdist open, which then waits for ever."""
    forks = re.compile(r"""os\.fork|["']fork["']|forkpty""")
    this = ROOT / "tests" / "test_house.py"
    texts = {path.name: path.read_text() for path in this.parent.glob("test_*.py") if path != this}
    assert not [name for name, text in texts.items() if forks.search(text)]
