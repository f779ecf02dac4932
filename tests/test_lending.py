"""A kept concept is lent to cells that only draw otherwise, and a page says what methods cost."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from stub_cells import a_cell

from eqdiff.errors import UserError
from studies.reproduce import cell as cell_module
from studies.reproduce import lending, measures
from studies.reproduce import run as run_module
from studies.reproduce.cell import LENT, Cell
from studies.reproduce.costs import costs_as_text
from studies.reproduce.lending import CONCEPT, borrow, lend
from studies.reproduce.settings import ReproduceConfig
from studies.reproduce.store import Store

GUIDED = ("--guidance_scale", "5")
ROW = {"seconds": {"train": 9.0, "draw": 1.0}, "cpu_seconds": {"train": 8.0, "draw": 1.0}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one kept concept, of cell 0."""
    made = Store(tmp_path / "store")
    kept = made.kept(a_cell(0).key) / "concept.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"learned")
    lend(made, a_cell(0), ROW)
    return made


def test_a_cell_that_draws_otherwise_gets_the_concept(store: Store, tmp_path: Path) -> None:
    other = dataclasses.replace(a_cell(0), draw=GUIDED, prompts=(("a {} there", "plain"),))
    assert other.key != a_cell(0).key
    borrow(store, other, tmp_path)
    assert (tmp_path / CONCEPT).read_bytes() == b"learned"
    facts = json.loads((tmp_path / LENT).read_text())
    assert facts == {"key": a_cell(0).key, "seconds": 9.0, "cpu_seconds": 8.0}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"train": ("--preset", "toybox", "--masking", "noise")},
        {"base_digest": "other"},
        {"subject_digest": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_training_is_not_lent(store: Store, tmp_path: Path, change: dict) -> None:
    borrow(store, dataclasses.replace(a_cell(0), draw=GUIDED, **change), tmp_path)
    assert not (tmp_path / CONCEPT).exists() and not (tmp_path / LENT).exists()


def test_neither_a_concept_of_other_code_nor_one_that_was_not_kept_is_lent(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(store, a_cell(1), ROW)  # nothing of it was kept
    borrow(store, a_cell(1), tmp_path)
    assert not (tmp_path / LENT).exists()
    monkeypatch.setattr(lending, "code_mark", lambda: "other")
    borrow(store, a_cell(0), tmp_path)
    assert not (tmp_path / LENT).exists()


@pytest.mark.parametrize("lent", [False, True])
def test_a_cell_with_a_lent_concept_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lent: bool
) -> None:
    ran: list[str] = []

    def run_script(name: str, words: Any) -> None:
        ran.append(name)
        if name == "test_eqdiff.py":
            (tmp_path / "samples" / "images").mkdir(parents=True)
            (tmp_path / "samples" / "manifest.jsonl").write_text("")

    facts = {"numbers": 1, "drift": {}}
    monkeypatch.setattr(cell_module, "run_script", run_script)
    monkeypatch.setattr(measures, "measured", lambda *_: [])
    monkeypatch.setattr("studies.reproduce.facts.facts_of", lambda *_: facts)
    if lent:
        known = {"key": "k", "seconds": 9.0, "cpu_seconds": 8.0}
        (tmp_path / LENT).write_text(json.dumps(known))
    row = cell_module.run(a_cell(0), tmp_path)
    assert ran == (["test_eqdiff.py"] if lent else ["train_eqdiff.py", "test_eqdiff.py"])
    assert (row["seconds"]["train"] == 9.0) is lent
    assert (row["cpu_seconds"]["train"] == 8.0) is lent
    assert Cell.of({name: row[name] for name in Cell.__dataclass_fields__}).key == a_cell(0).key


@pytest.mark.parametrize(
    ("changes", "toy", "said"),
    [
        ({"tables": ("search",)}, True, "--tables search: it chooses settings"),
        ({"tables": ("guidance",)}, False, "--tables guidance: its settings are the toybox's"),
        ({"tables": ("guidance",), "subjects": "photos"}, True, "its settings are the toybox's"),
        ({"verify": ("rates",)}, True, "--tables rates: it chooses settings"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(changes: dict, toy: bool, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_module.require_fitting(ReproduceConfig(**changes), toy)


def test_tables_that_fit_are_not_refused() -> None:
    run_module.require_fitting(ReproduceConfig(tables=("fig7", "methods")), False)
    run_module.require_fitting(ReproduceConfig(tables=("search",), toybox_table="dev"), True)


def test_costs_say_what_cells_know_and_leave_the_rest_empty() -> None:
    drift = {"mean": 0.002, "low": 0.001, "high": 0.003, "n": 3, "detectable": 0.001}
    counted = {"steps": 300, "step_u": 8.2, "picture_u": 63.0}
    full = {"numbers": 12480, "train_seconds": 40.0, "picture_seconds": 1.1, "drift": drift}
    older = dict.fromkeys(full)
    lines = costs_as_text(
        [{"variant": "E", **counted, **full}, {"variant": "old", **counted, **older}]
    ).splitlines()
    assert "| E | 12,480 | 300 | 8.2 | 40.0 | 63.0 | 1.1 | 2.000 ± 1.000 |" in lines
    assert "| old |  | 300 | 8.2 |  | 63.0 |  |  |" in lines
