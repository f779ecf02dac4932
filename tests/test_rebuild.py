"""The whole of scripts/reproduce.sh on a tiny base, with real processes and real trainings."""

import json
import shutil
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from tiny import make_judges

from studies.reproduce import run as run_module
from studies.reproduce.methods import PAPER_TABLES, TABLES
from studies.reproduce.store import Store, result_of


@pytest.fixture
def words(tiny_base: Path, tiny_subject: Path, tmp_path: Path, own_caches: None) -> list[str]:
    """The flags of a smoke run: DreamBooth's layout, a tiny base, a tiny CLIP and DINO."""
    photos = tmp_path / "photos"
    for name in ("can", "dog6"):
        shutil.copytree(tiny_subject, photos / name)
    clip, dino = make_judges(tmp_path / "judges", tiny_base)
    given = {"--base": tiny_base, "--subjects": photos, "--clip": clip, "--dino": dino}
    flags = [str(word) for pair in given.items() for word in pair]
    return [*flags, "--output_dir", str(tmp_path / "out"), "--smoke"]


def said_by(words: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    run_module.main(words)
    return capsys.readouterr().out


def changes(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where two rows differ, and in what."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() | after.keys():
            yield from changes(before.get(name), after.get(name), f"{place}/{name}")
    elif isinstance(before, list) and isinstance(after, list):
        for number, pair in enumerate(zip_longest(before, after)):
            yield from changes(*pair, f"{place}/{number}")
    elif before != after:
        yield f"{place}: {before} and {after}"


@pytest.mark.slow
def test_a_cell_goes_from_photos_to_the_table_and_verifies(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = [*words, "--tables", "table1", "--methods", "EqDiff"]
    said = said_by(asked, capsys)
    assert "plan: table1: 1 subjects, 1 cells, 0 of them there" in said
    assert "done: 1 cells were run" in said
    store = Store(tmp_path / "out")
    (row,) = store.rows().values()
    assert (row["subject"], row["class_word"], row["threads"]) == ("can", "can", 1)
    assert row["base"] == "tiny" and "torch" in row["versions"]
    assert str(tmp_path) not in json.dumps(row)
    assert [picture["kind"] for picture in row["rows"]] == ["plain", "style"]
    page = (tmp_path / "out" / "table1.md").read_text()
    assert "| EqDiff | style |" in page and "0.790 0.755 0.584 |" in page

    assert "done: 0 cells were run" in said_by(asked, capsys)
    with pytest.raises(SystemExit) as stop:
        run_module.main([*asked, "--verify", "table1", "--verify_cells", "0"])
    assert stop.value.code == 0, capsys.readouterr().out
    assert "2 pictures measured again, 0 cells run again: agree" in capsys.readouterr().out

    (store.kept(row["key"]) / "images" / row["rows"][0]["file"]).write_bytes(b"another")
    with pytest.raises(SystemExit) as stop:
        run_module.main([*asked, "--verify", "table1", "--verify_cells", "0"])
    assert stop.value.code == 1
    assert "is not the one that was measured" in capsys.readouterr().out


@pytest.mark.long
def test_all_tables_come_out_of_a_smoke_run_and_verify(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    said = said_by([*words, "--processes", "2"], capsys)
    assert "done: 13 cells were run" in said
    for name in PAPER_TABLES:
        wanted = TABLES[name]
        page = (tmp_path / "out" / f"{name}.md").read_text()
        assert all(f"| {method} | style |" in page for method in wanted.methods)
        assert "missing" not in page
    with pytest.raises(SystemExit) as stop:
        run_module.main([*words, "--verify", *PAPER_TABLES, "--verify_cells", "1"])
    assert stop.value.code == 0, capsys.readouterr().out

    before = {key: result_of(row) for key, row in Store(tmp_path / "out").rows().items()}
    said_by([*words, "--tables", "table1", "--fresh"], capsys)
    after = {key: result_of(row) for key, row in Store(tmp_path / "out").rows().items()}
    for key, row in after.items():
        assert row == before[key], list(changes(before[key], row))  # bit for bit
    assert after.keys() == before.keys()


@pytest.mark.slow
def test_a_plan_runs_nothing(words: list[str], capsys: pytest.CaptureFixture) -> None:
    said = said_by([*words, "--plan"], capsys)
    assert "plan: table1, fig7, fig9: 1 subjects, 13 cells, 0 of them there" in said
    assert "of one process here (counted" in said
    assert "done" not in said
