"""The list of breakages does not rot: each line is there, each test exists. `scripts/mutants.sh`
runs them."""

import ast
from pathlib import Path

import pytest
from mutants.breakages import MUTANTS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_breakage_finds_its_line_once_and_names_tests_that_exist(mutant):
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_there_are_enough_of_them_and_no_name_twice():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 35
