"""The rating sheet: blind, whole, balanced; and what is counted of its results."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eqdiff.errors import UserError
from studies.reproduce import rating
from studies.reproduce.methods import TABLES
from studies.reproduce.plan import Ground, Plan, made
from studies.reproduce.settings import ReproduceConfig
from studies.reproduce.store import Store
from studies.reproduce.subjects import Subject

GROUND = Ground("base", "b", "clip", "dino", "e", 512)
AGAINST = TABLES["table1"].against
RIVALS = [name for name in TABLES["table1"].methods if name != AGAINST]
PROMPTS = (("a {} </script><b>", "plain"), ("a sketch of a {}", "style"))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Table 1 of two subjects with a photo each."""
    subjects = []
    for name in ("s0", "s1"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), "green").save(tmp_path / name / "00.jpg")
        subjects.append(Subject(name, "mug", tmp_path / name, name, PROMPTS))
    return made(ReproduceConfig(rating_sheet="table1"), GROUND, subjects)


@pytest.fixture
def store(plan: Plan, tmp_path: Path) -> Store:
    """Its cells, whose pictures say in their files whose they are; the colour does too."""
    store = Store(tmp_path / "out")
    rows = []
    compared_with = {cell.key for (method, _, _), cell in plan.cells.items() if method == AGAINST}
    for (method, _, _), cell in plan.cells.items():
        folder = store.kept(cell.key) / "images"
        folder.mkdir(parents=True, exist_ok=True)
        note = PngInfo()
        note.add_text("method", method)
        facts = []
        for number, (text, kind) in enumerate(cell.prompts):
            file = folder / f"{number}.png"
            colour = "red" if cell.key in compared_with else "blue"
            Image.new("RGB", (500, 500), colour).save(file, pnginfo=note)
            facts.append({"file": file.name, "prompt": text, "kind": kind})
        rows.append(json.dumps({"key": cell.key, "rows": facts}))
    store.file.write_text("\n".join(rows) + "\n")
    return store


def sheet_in(page: str) -> dict[str, Any]:
    """The JSON of a sheet's page."""
    return json.loads(re.search(r"const SHEET = (.*);\n", page).group(1))


def test_a_sheet_is_one_page_that_names_no_method_and_loads_nothing(
    plan: Plan, store: Store
) -> None:
    file, _ = rating.write_sheet(plan, store, "table1", 60, 0)
    page = file.read_text(encoding="utf-8")
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not [name for name in TABLES["table1"].methods if name in words]
    assert "http:" not in words and "https:" not in words and "src=" not in words
    assert words.count("</script>") == 1  # that of a prompt is escaped
    for pair in sheet_in(page)["pairs"]:
        assert set(pair) == {"words", "photo", "pictures"}
        for link in pair["pictures"]:
            assert b"method" not in rating.base64.b64decode(link.partition(",")[2])


def test_the_sides_are_drawn_and_the_key_has_them_as_they_are_shown(
    plan: Plan, store: Store
) -> None:
    file, key_file = rating.write_sheet(plan, store, "table1", 60, 0)
    pairs = sheet_in(file.read_text(encoding="utf-8"))["pairs"]
    key = json.loads(key_file.read_text())
    assert len(pairs) == len(key["pairs"]) == 2 * 2 * len(RIVALS)
    sides = [pair["left"] == AGAINST for pair in key["pairs"]]
    left = {frozenset((pair["left"], pair["right"])): set() for pair in key["pairs"]}
    for pair in key["pairs"]:
        left[frozenset((pair["left"], pair["right"]))].add(pair["left"])
    assert max(map(len, left.values())) == 2  # the same two methods, either on the left
    red = {pair["pictures"][not first] for pair, first in zip(pairs, sides, strict=True)}
    blue = {pair["pictures"][first] for pair, first in zip(pairs, sides, strict=True)}
    assert len(red) == len(blue) == 1 and red != blue  # the red ones are those compared with

    again = rating.write_sheet(plan, store, "table1", 60, 0)[1].read_text()
    other = rating.write_sheet(plan, store, "table1", 60, 1)[1].read_text()
    assert again == json.dumps(key, indent=1) + "\n" != other


def test_few_pairs_are_shared_evenly_among_the_methods(plan: Plan, store: Store) -> None:
    _, key_file = rating.write_sheet(plan, store, "table1", 2 * len(RIVALS), 3)
    shown = [{pair["left"], pair["right"]} for pair in json.loads(key_file.read_text())["pairs"]]
    assert all(AGAINST in both for both in shown)
    assert [sum(name in both for both in shown) for name in RIVALS] == [2] * len(RIVALS)


def test_without_pictures_there_is_no_sheet(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rating_sheet table1: no pictures"):
        rating.write_sheet(plan, Store(tmp_path / "empty"), "table1", 60, 0)


def results(file: Path, rows: list[tuple[object, ...]]) -> Path:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([rating.COLUMNS, *rows])
    return file


def test_wins_are_counted_whatever_the_side_and_the_interval_is_over_subjects(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rival = RIVALS[0]
    pairs = [
        {"left": rival, "right": AGAINST, "subject": "s0", "kind": "plain"},
        {"left": AGAINST, "right": rival, "subject": "s1", "kind": "plain"},
        {"left": AGAINST, "right": rival, "subject": "s1", "kind": "style"},
    ]
    key = {"sheet": "m", "table": "table1", "pairs": pairs}
    (tmp_path / "key.json").write_text(json.dumps(key))
    ann = [("m", "Ann", n, "identity", a) for n, a in enumerate(("left", "right", "same"))]
    first = results(tmp_path / "a.csv", [("m", "Ann", 0, "identity", "right"), *ann])
    second = results(tmp_path / "b.csv", [("m", "Bob", 0, "identity", "right")])
    rating.main([str(tmp_path / "key.json"), str(first), str(second)])
    said = capsys.readouterr().out
    assert "4 answers of 2 raters" in said
    # s0: 1 of Ann, 0 of Bob; s1: 1 and a half; t of two values is 12.71, so all of [0, 1]
    assert f"| {rival} | identity | 0.62 | 0.00 to 1.00 | 2 | 4 |" in said


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("other", "Ann", 0, "identity", "left"), "another sheet"),
        (("m", "Ann", 1, "identity", "left"), "no answer"),
        (("m", "Ann", -1, "identity", "left"), "no answer"),
        (("m", "Ann", 0, "beauty", "left"), "no answer"),
        (("m", "Ann", 0, "identity", "both"), "no answer"),
        (("m", "Ann", 0), "no answer"),
        (("m", "Ann", 0, "identity", "left", "more"), "no answer"),
    ],
)
def test_results_that_are_none_are_refused_with_their_line(
    tmp_path: Path, row: tuple[object, ...], said: str
) -> None:
    pairs = [{"left": RIVALS[0], "right": AGAINST, "subject": "s", "kind": "plain"}]
    file = results(tmp_path / "r.csv", [row])
    with pytest.raises(UserError, match=f"r.csv, line 2: .*{said}"):
        rating.read_results([file], {"sheet": "m", "table": "table1", "pairs": pairs})


def test_the_template_has_the_place_of_the_sheet_once() -> None:
    page = (ROOT / "studies" / "reproduce" / "rating.html").read_text(encoding="utf-8")
    assert page.count(rating.MARK) == 1
