"""Studies: what is compared, how cells become tables and charts, what their pictures show."""

import dataclasses
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eqdiff.errors import UserError
from eqdiff.settings.presets import parse
from eqdiff.settings.train import TrainConfig
from studies.reproduce import again, ceiling, grid, shown, spread, twice, worst
from studies.reproduce.cell import Cell
from studies.reproduce.code import FILES, code_mark
from studies.reproduce.drawn import OPENING, cells_of, pictures_of, side_by_side
from studies.reproduce.estimates import (
    by_subject,
    difference,
    directions,
    estimate,
    for_json,
    markdown,
    table,
    verdict,
)
from studies.reproduce.figure import figure
from studies.reproduce.measures import Eyes
from studies.reproduce.methods import METHODS, TABLES
from studies.reproduce.paper import PAPER, PAPER_TABLE1, as_cells
from studies.reproduce.store import Store, sealed
from studies.reproduce.subjects import of_toybox
from studies.reproduce.tables import as_row, gain
from studies.scripts import ROOT
from toybox.instances import instance

LEVEL = {"A": 0.5, "B": 0.6, "C": 0.6, "D": 0.55, "E": 0.56, "F": 0.7}
METRICS = ("clip_t", "clip_i", "dino_i", "identity", "context", "style", "identity x text")


def rows_of(cells: list[dict[str, Any]], variants: str, against: str) -> list[dict[str, Any]]:
    return table(cells, variants, against, METRICS)


def a_cell(variant: str, subject: str, seed: int = 0, **figures: float) -> dict[str, Any]:
    row = (
        dict.fromkeys(("clip_t", "clip_i", "dino_i", "identity", "context", "style"), 0.5) | figures
    )
    rows = [{**row, "kind": kind, "prompt": kind} for kind in ("plain", "style")]
    return {"variant": variant, "subject": subject, "seed": seed, "rows": rows, "base": "b"}


def test_the_ablation_is_the_papers() -> None:
    settings = {
        n: parse(TrainConfig, ["--preset", "toybox", *METHODS[n].flags(True)])
        for n in TABLES["fig7"].methods
    }
    seen = {
        n: (c.rra, c.rra and c.ra_loss_weight > 0, c.fdte, c.masking) for n, c in settings.items()
    }
    assert seen == {
        "A": (False, False, False, "none"),
        "B": (True, False, False, "none"),
        "C": (True, True, False, "none"),
        "D": (True, True, True, "none"),
        "E": (True, True, True, "loss"),
        "F": (True, True, True, "noise"),
    }


def test_subjects_are_of_many_classes() -> None:
    assert len({name for name, _ in of_toybox(8)}) == 8
    assert len(set(of_toybox(16))) == 16


def test_an_interval_is_students_and_covers() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0])
    half = 3.182 * math.sqrt(5 / 3) / 2
    assert (found.mean, found.n) == (2.5, 4)
    assert found.low == pytest.approx(2.5 - half)
    assert found.high == pytest.approx(2.5 + half)
    assert found.detectable > half
    assert estimate([7.0]).high == math.inf


def test_seeds_and_prompts_are_averaged_before_subjects_are_counted() -> None:
    cells = [
        a_cell("A", "x", 0, dino_i=0.2),
        a_cell("A", "x", 1, dino_i=0.4),
        a_cell("A", "y", 0, dino_i=0.9),
    ]
    assert by_subject(cells, "A", "all", "dino_i") == {"x": pytest.approx(0.3), "y": 0.9}
    assert estimate(by_subject(cells, "A", "all", "dino_i").values()).n == 2


def test_differences_are_paired_by_subject() -> None:
    a, b = {"x": 0.1, "y": 0.9, "z": 0.4}, {"x": 0.0, "y": 0.8, "w": 5.0}
    found = difference(a, b)
    assert found.n == 2
    assert found.mean == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)


def test_a_verdict_needs_an_interval_that_excludes_zero() -> None:
    assert verdict(estimate([0.1, 0.11, 0.12])) == "holds"
    assert verdict(estimate([-0.1, -0.11, -0.12])) == "does not hold"
    assert verdict(estimate([0.1, -0.1, 0.12])) == "cannot be told at this n"


def test_the_directions_are_read_off_the_right_cells() -> None:
    """Cells that follow the paper on all nine counts, then each count turned round."""

    def cells(**other: dict[str, float]) -> list[dict[str, Any]]:
        image = {"A": 0.50, "B": 0.70, "C": 0.71, "D": 0.60, "E": 0.62, "F": 0.69}
        text = {"A": 0.60, "B": 0.50, "C": 0.50, "D": 0.55, "E": 0.56, "F": 0.65}
        image, text = image | other.get("image", {}), text | other.get("text", {})
        jitter = {"x": 0.0, "y": 0.001, "z": 0.002}
        return [
            a_cell(v, s, dino_i=image[v] + e, clip_t=text[v] + e)
            for v in "ABCDEF"
            for s, e in jitter.items()
        ]

    assert [said for _, _, said in directions(cells())] == ["holds"] * 9
    turned = {
        0: {"image": {"A": 0.8}},
        1: {"text": {"B": 0.7}},
        2: {"image": {"C": 0.9}},
        3: {"text": {"D": 0.4}},
        4: {"image": {"D": 0.75}},
        5: {"text": {"F": 0.5}},
        6: {"text": {"E": 0.7}},
        7: {"image": {"F": 0.55}},
        8: {"text": {"E": 0.9}},
    }
    for number, change in turned.items():
        assert directions(cells(**change))[number][2] == "does not hold", number


def test_tables_have_a_row_a_variant_prompt_set_and_metric() -> None:
    cells = [a_cell(v, s, dino_i=LEVEL[v]) for v in "AF" for s in "xyz"]
    rows = rows_of(cells, "AF", "F")
    assert len(rows) == 2 * 3 * 7
    row = next(
        r for r in rows if (r["variant"], r["prompts"], r["metric"]) == ("A", "all", "dino_i")
    )
    assert row["n"] == 3
    assert row["difference"]["mean"] == pytest.approx(-0.2)
    lines = markdown(rows, ("dino_i", "clip_t", "of nobody")).splitlines()
    assert lines[0] == "| variant | prompts | dino_i | clip_t | n |"
    assert "| A | all | 0.500 ± 0.000 * | 0.500 ± 0.000 | 3 |" in lines
    assert [line.split(" | ")[1] for line in lines[2:]] == ["plain"] * 2 + ["style"] * 2 + [
        "all"
    ] * 2


def test_a_metric_that_some_pictures_lack_is_of_those_that_have_it() -> None:
    cells = [a_cell("A", s) for s in "xy"]
    for level, cell in zip((4.0, 6.0), cells, strict=True):
        cell["rows"][0]["colours"] = level  # of the plain one
    rows = table(cells, "A", "A", ("colours", "clip_t"))
    found = {row["prompts"]: row["mean"] for row in rows if row["metric"] == "colours"}
    assert found == {"plain": 5.0, "all": 5.0}
    assert "| A | style |  | 0.500 ± 0.000 | 2 |" in markdown(rows, ("colours", "clip_t"))


def test_in_the_figure_more_identity_is_higher_and_more_text_further_right() -> None:
    levels = {"A": (0.5, 0.6), "B": (0.7, 0.8), "C": (0.9, 0.7)}
    jitter = {"x": 0.0, "y": 0.01, "z": 0.02}
    cells = [
        a_cell(v, s, identity=i + e, clip_t=t + e)
        for v, (i, t) in levels.items()
        for s, e in jitter.items()
    ]
    for panel in figure(rows_of(cells, "ABC", "A")).axes:
        places = {}
        for bars in panel.containers:
            (place,) = bars.lines[0].get_xydata()
            places[bars.get_label()] = panel.transData.transform(place)
        assert places["A"][1] < places["B"][1] < places["C"][1]
        assert places["A"][0] < places["C"][0] < places["B"][0]


def test_in_the_figure_a_bar_is_the_interval_of_the_paired_difference() -> None:
    levels = {"x": 0.0, "y": 0.1, "z": 0.2}
    gains = {"x": 0.01, "y": 0.02, "z": 0.03}
    cells = [a_cell("A", s, identity=0.5 + e) for s, e in levels.items()]
    cells += [a_cell("B", s, identity=0.5 + e + gains[s]) for s, e in levels.items()]
    panel = figure(rows_of(cells, "AB", "A")).axes[0]
    heights = {}
    for bars in panel.containers:
        (segment,) = bars.lines[2][1].get_segments()
        heights[bars.get_label()] = float(segment[1][1] - segment[0][1])
    assert heights["A"] == 0
    assert heights["B"] == pytest.approx(2 * 4.303 * 0.01 / math.sqrt(3), rel=1e-3)  # not of .1


def test_a_product_is_of_each_subjects_means() -> None:
    cells = [
        a_cell("A", "x", 0, identity=0.2, clip_t=0.5),
        a_cell("A", "x", 1, identity=0.4, clip_t=0.7),
    ]
    assert by_subject(cells, "A", "all", "identity x text") == {"x": pytest.approx(0.3 * 0.6)}


def test_the_papers_figures_stand_beside_ours() -> None:
    cells = [a_cell(v, s) for v in "AF" for s in "xyz"]
    lines = markdown(rows_of(cells, "AF", "F"), METRICS, PAPER).splitlines()
    assert next(line for line in lines if line.startswith("| F | style")).endswith(
        "| 3 | 0.790 0.755 0.584 |"
    )
    assert {*PAPER} == {*TABLES["fig7"].methods}
    assert {*PAPER_TABLE1} > {*TABLES["table1"].methods}


def test_numbers_in_json_have_six_digits() -> None:
    given = {"a": [1 / 3, 12345.678901], "b": 7, "c": (1 / 3, float("nan"))}
    assert for_json(given) == {"a": [0.333333, 12345.7], "b": 7, "c": [0.333333, None]}


def test_bounds_of_one_subject_are_null_in_json() -> None:
    rows = for_json(rows_of([a_cell("A", "x")], "A", "A"))
    assert rows[0]["low"] is None
    assert "Infinity" not in json.dumps(rows)


def test_the_mark_of_the_code_changes_with_the_code_and_not_with_its_comments(
    tmp_path: Path,
) -> None:
    for name in ("eqdiff", "toybox", "studies/reproduce"):
        (tmp_path / name).mkdir(parents=True)
    for name in FILES:
        (tmp_path / name).write_text("x = 1\n")
    file = tmp_path / "eqdiff" / "a.py"
    marks = []
    for text in ("def f():\n    return 1\n",
                 "def f():\n    \"\"\"Why.\"\"\"\n    return 1  # because\n",
                 "def f():\n    return 2\n"):  # fmt: skip
        file.write_text(text)
        code_mark.cache_clear()
        marks.append(code_mark(tmp_path))
    code_mark.cache_clear()
    assert marks[0] == marks[1] != marks[2]


def test_a_claim_that_nobody_measured_is_an_empty_field() -> None:
    claim = as_row(gain([a_cell("A", "cat")], "B", "A", "all", "dino_i"))
    line = shown.directions(for_json({"directions": [claim]})).splitlines()[-1]
    assert line == "| B > A, all dino_i |  | 0 | no cells |  |"


def test_the_papers_own_figures_show_its_directions() -> None:
    found = directions(as_cells())
    assert all(estimate.mean > 0 for _, estimate, _ in found)
    assert found[1][1].mean == pytest.approx((0.770 + 0.774 - 0.755 - 0.746) / 2 / 2.5)


def a_kept_cell(folder: Path, subject: str, seed: int, method: str, **figures: Any) -> None:
    """A finished cell of the toybox with three grey pictures, one of them of another style."""
    prompts = ("a photo of a {} on the beach", "a photo of a {} in a galaxy")
    prompts += ("a watercolor painting of a {} on the beach",)
    cell = Cell(
        **dict.fromkeys(("base", "base_digest", "clip", "dino", "eyes_digest"), "toy"),
        **dict.fromkeys(("subject", "subject_digest", "photos"), subject),
        class_word=subject.partition("_")[0],
        train=(*OPENING, *METHODS[method].flags(True)),
        draw=METHODS[method].draw,
        seed=seed,
        prompts=tuple((prompt, "plain") for prompt in prompts),
        images=1,
        threads=1,
    )
    rows = []
    images = folder / "kept" / cell.key / "images"
    images.mkdir(parents=True)
    for number, prompt in enumerate(prompts):
        Image.new("RGB", (128, 128), (90 + 30 * number,) * 3).save(images / f"{number}.png")
        known = dict(identity=0.5, context=1.0, style=1.0, clip_t=0.8, max_cosine=0.5) | figures
        known["clip_t"] -= 0.01 * number
        facts = {"file": f"{number}.png", "prompt": prompt, "kind": "plain", "seed": number}
        rows.append(facts | known)
    Store(folder).save(sealed({"key": cell.key, **dataclasses.asdict(cell), "rows": rows}))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    for subject in ("cat_0", "mug_0"):
        for method in ("E", "F"):
            a_kept_cell(tmp_path, subject, 0, method)
    a_kept_cell(tmp_path, "mug_0", 1, "F", identity=0.1)
    Store(tmp_path).gather()
    return tmp_path


def test_pictures_are_found_by_the_method_that_drew_them(kept: Path) -> None:
    assert len(cells_of(kept, "E")) == 2
    rows = cells_of(kept, "EqDiff")  # F by another name
    assert {(row["subject"], row["seed"]) for row in rows} == {
        ("cat_0", 0), ("mug_0", 0), ("mug_0", 1),
    }  # fmt: skip
    first = next(pictures_of(kept, rows[0], "test"))
    assert (first.context, first.style) == ("on the beach", "photo")
    with pytest.raises(UserError, match="no cells of DreamBooth"):
        cells_of(kept, "DreamBooth")


def test_what_was_chosen_is_measured_on_subjects_that_did_not_choose(tmp_path: Path) -> None:
    names = [f"{class_name}_{index}" for class_name, index in of_toybox(again.ALL)]
    for subject, won in ((names[0], 0.9), (names[8], 0.7), (names[9], 0.6)):
        a_kept_cell(tmp_path, subject, 0, "E", identity=0.5)
        for method in TABLES["plus"].methods[1:]:
            a_kept_cell(tmp_path, subject, 0, method, identity=won)
    Store(tmp_path).gather()

    again.main([str(tmp_path)])
    found = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))["directions"]
    assert [row["claim"] for row in found[:2]] == [
        "E, prediction matching > E, all identity", "E, prediction matching > E, all clip_t",
    ]  # fmt: skip
    assert len(found) == 12 and found[0]["n"] == 2 and found[0]["mean"] == pytest.approx(0.15)
    assert found[1]["mean"] == pytest.approx(0.0, abs=1e-9)


def test_a_row_of_another_table_is_asked_again_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{class_name}_{index}" for class_name, index in of_toybox(again.ALL)]
    for subject in (names[8], names[9]):
        a_kept_cell(tmp_path, subject, 0, "0.1 0.1 0.8", identity=0.5)
        a_kept_cell(tmp_path, subject, 0, "0 0 1", identity=0.6)
    Store(tmp_path).gather()

    again.main([str(tmp_path), "--table", "fig9", "--methods", "0 0 1"])
    assert "| 0 0 1 > 0.1 0.1 0.8, all identity | +0.100 " in capsys.readouterr().out
    assert not (tmp_path / "again.json").exists()
    page = (tmp_path / "again_fig9.md").read_text(encoding="utf-8").splitlines()
    assert page[0] == "# Fig. 9, asked again" and f"{names[8]}, {names[9]}, " in page[2]
    assert page[6].startswith("| 0 0 1 > 0.1 0.1 0.8, all identity | +0.100 ")
    with pytest.raises(SystemExit) as stopped:
        again.main([str(tmp_path), "--table", "fig9", "--methods", "E"])
    assert stopped.value.code == 2
    assert "--methods: fig9 compares 0 0 1, " in capsys.readouterr().err

    a_kept_cell(tmp_path, names[0], 0, "0.3 0.3 0.4", identity=0.6)
    Store(tmp_path).gather()
    with pytest.raises(UserError, match="0.3 0.3 0.4 has no cells of "):
        again.claims(tmp_path, names[again.FIRST :], ["0.3 0.3 0.4"], "0.1 0.1 0.8")


def test_methods_are_beside_each_other_by_the_seeds_that_all_of_them_have(kept: Path) -> None:
    places = [
        (row["variant"], row["subject"], row["seed"]) for row in side_by_side(kept, ["E", "F"])
    ]
    assert places == [(method, name, 0) for method in "EF" for name in ("mug_0", "cat_0")]
    assert [row["seed"] for row in side_by_side(kept, ["F"])] == [0, 1, 0]
    with pytest.raises(UserError, match="no cells of DreamBooth"):
        side_by_side(kept, ["E", "DreamBooth"])


def test_the_truth_is_measured_as_the_pictures_are(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def row_of(method: str, metric: str) -> dict[str, Any]:
        return next(
            row
            for row in json.loads((kept / "ceiling_nearer.json").read_text())["rows"]
            if (row["variant"], row["metric"], row["prompts"]) == (method, metric, "all")
        )

    for subject, seed in (("mug_0", 0), ("cat_0", 0)):
        a_kept_cell(kept, subject, seed, "E, background 0.1", identity=0.4, dino_i=0.3)
    Store(kept).gather()
    asked = [str(kept), "--table", "nearer", "--methods"]
    ceiling.main([*asked, "E, background 0.1"])
    assert capsys.readouterr().out.splitlines()[2].startswith(f"| {ceiling.TRUTH} | ")

    # drawn in the very place and style, the subject of the photos: nothing is lost but by the VAE
    assert row_of(ceiling.TRUTH, "context")["mean"] == 1.0
    assert row_of(ceiling.TRUTH, "style")["mean"] == 1.0
    assert row_of(ceiling.TRUTH, "identity")["mean"] > 0.65
    assert row_of(ceiling.TRUTH, "dino_i")["mean"] > 0.75
    theirs = row_of("E, background 0.1", "identity")
    gap = 0.4 - row_of(ceiling.TRUTH, "identity")["mean"]
    assert theirs["mean"] == pytest.approx(0.4)
    assert theirs["difference"]["mean"] == pytest.approx(gap)

    a_kept_cell(kept, "mug_0", 0, "half noisy, rate 2e-3", dino_i=0.3)
    Store(kept).gather()
    drawn = []

    def instance_of(*place: Any) -> Any:
        drawn.append(place)
        return instance(*place)

    monkeypatch.setattr(ceiling, "instance", instance_of)
    ceiling.main([str(kept), "--table", "rivals", "--methods", "half noisy, rate 2e-3"])
    assert drawn == [("dev", "mug", 0)]  # a table of dev subjects

    page = (kept / "ceiling_nearer.md").read_text(encoding="utf-8").splitlines()
    assert page[0] == "# Masked noising, changed, beside the truth" and len(page) == 9
    with pytest.raises(SystemExit) as stopped:
        ceiling.main([*asked, "D"])
    assert stopped.value.code == 2
    assert "--methods: nearer has E, F, " in capsys.readouterr().err


def test_cells_that_were_run_twice_are_compared_cell_by_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, moved in (("first", 0.0), ("second", 0.1)):
        for subject, sign in (("cat_0", 1), ("mug_0", -1)):
            figures = {"identity": 0.5 + sign * moved, "dino_i": 0.5 + moved}
            a_kept_cell(tmp_path / folder, subject, 0, "E", **figures)
        a_kept_cell(tmp_path / folder, folder, 0, "E", identity=0.9, dino_i=0.9)  # in one alone
        Store(tmp_path / folder).gather()

    folders = (tmp_path / "first", tmp_path / "second")
    assert sorted(twice.differences(*folders, "identity")) == pytest.approx([-0.1, 0.1])
    twice.main([str(folder) for folder in folders])
    said = capsys.readouterr().out.splitlines()
    assert said[2].startswith("| identity | 0.1000 | ") and said[2].endswith("| 2 |")
    assert said[4].startswith("| dino_i | 0.1000 | +0.1000 (+0.1000 to +0.1000)")
    with pytest.raises(UserError, match="no cell is in both"):
        twice.differences(folders[0], tmp_path / "empty", "identity")


def test_a_row_from_before_a_preset_changed_is_not_taken_for_the_present_one(
    kept: Path,
) -> None:
    store = Store(kept)
    before = cells_of(kept, "E")[0]
    store.save(sealed({**before, "key": "0" * 16}))  # as its key was by other settings
    store.gather()
    assert [row["key"] for row in cells_of(kept, "E")].count(before["key"]) == 1
    assert "0" * 16 not in [row["key"] for row in cells_of(kept, "E")]


def test_a_row_is_found_by_what_its_flags_meant_when_it_was_made(kept: Path) -> None:
    """A method that says now what the preset said then is the same method."""
    store = Store(kept)
    before = cells_of(kept, "F")[0]
    store.save(sealed({**before, "train": ["--preset", "toybox"]}))
    store.gather()
    found = next(row for row in cells_of(kept, "F") if row["key"] == before["key"])
    assert found["train"] == ["--preset", "toybox"]


def test_the_grid_has_the_first_picture_of_each_style_over_its_truth(kept: Path) -> None:
    target = kept / "grid.png"
    grid.main([str(kept), "--method", "F", "--picture", str(target)])
    with Image.open(target) as sheet:
        assert sheet.width > 2 * 128 and sheet.height > 4 * 128
        one_method = sheet.height
    grid.main([str(kept), "--method", "F", "E", "--subjects", "1", "--picture", str(target)])
    with Image.open(target) as sheet:  # three rows in place of two for each of two subjects
        assert sheet.height == pytest.approx(3 / 4 * one_method, abs=20)
    pictures = list(pictures_of(kept, cells_of(kept, "F")[0], "test"))
    assert [one.file.name for one in grid.first_of_each_style(pictures)] == ["0.png", "2.png"]


def test_the_worst_are_the_lowest_marks_and_are_told_what_is_wrong(
    kept: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = cells_of(kept, "F")
    pictures = [one for row in rows for one in pictures_of(kept, row, "test")]
    lowest = worst.lowest(pictures, 3)
    assert {one.row["identity"] for one in lowest["identity"]} == {0.1}
    assert {one.file.name for one in lowest["text"]} == {"2.png"}
    worst.main([str(kept), "--method", "F", "--count", "2", "--picture", str(kept / "worst.png")])
    assert (kept / "worst_identity.png").is_file() and (kept / "worst_text.png").is_file()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["identity"] * 2 + ["text"] * 2
    assert "context" in lines[2] and ", not " in lines[2]


class Brightness:
    """A judge that sees how bright a picture is, and its top left pixel."""

    def images(self, pictures: list[Image.Image]) -> torch.Tensor:
        grey = [np.asarray(picture.convert("L"), float) / 255 for picture in pictures]
        return torch.tensor([[each.mean(), each[0, 0]] for each in grey])


def test_w2_is_taken_against_what_the_base_draws_once_for_all_methods(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def base_pictures(pipe: Any, rows: Any, word: str, size: Any, number: int) -> list[Image.Image]:
        calls.append((word, number))
        assert [row["seed"] for row in rows] == [0, 1, 2]
        assert {(row["steps"], row["guidance"], row["scheduler"]) for row in rows} == {
            (30, 2.0, "ddim")
        }
        return [Image.new("RGB", size, (90 + 30 * n + 20 * number,) * 3) for n in range(3)]

    monkeypatch.setattr(spread, "base_pictures", base_pictures)
    bases = spread.Bases(None, Eyes(Brightness(), Brightness()))
    found = spread.measured(kept, "test", ["E", "F"], bases)
    assert sorted(calls) == [("cat", 0), ("cat", 1), ("mug", 0), ("mug", 1)]

    # the cells' pictures are the base's own; of its other seeds all are brighter, and none nearer
    for method in ("E", "F"):
        assert found[method].keys() == {"cat_0", "mug_0"}
        assert all(abs(value) < 1e-9 for value in found[method]["cat_0"].values())
    floor = found[spread.FLOOR]["cat_0"]
    assert floor["dino mean"] == pytest.approx(2 * (20 / 255) ** 2)
    assert floor["dino trace"] == pytest.approx(0, abs=1e-9)

    lines = shown.spread({"methods": for_json(spread.summary(found))}).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {n}" for n in (spread.FLOOR, *"EF")]
    assert len({line.count("|") for line in lines}) == 1


def test_pages_show_what_their_cells_gave() -> None:
    """Else: python -m studies.reproduce.shown."""
    blocks = 0
    for page in shown.pages():
        text = page.read_text(encoding="utf-8")
        blocks += len(shown.BLOCK.findall(text))
        assert shown.filled(text) == text, page
        assert text.count("<!-- shown ") == len(shown.BLOCK.findall(text)), page
    assert blocks >= 2


def test_a_page_that_is_behind_its_cells_is_written_anew(tmp_path: Path) -> None:
    rows = rows_of([a_cell(v, s, identity=LEVEL[v]) for v in "AF" for s in "xyz"], "AF", "F")
    results = tmp_path / shown.RESULTS
    results.mkdir(parents=True)
    found = {"rows": for_json(rows), "directions": [], "costs": []}
    (results / "t.json").write_text(json.dumps(found))
    page = "before\n<!-- shown means t.json -->\nold\n<!-- end -->\nafter\n"
    lines = shown.filled(page, tmp_path).splitlines()
    assert lines[0] == "before" and lines[-1] == "after"
    assert lines[2].startswith("| method | identity | CLIP-T |")
    assert lines[4].startswith("| A | 0.500 ± 0.000 * | 0.500 ± 0.000 |")


TABLE_FILES = sorted((ROOT / shown.RESULTS).glob("*/*.json"))


@pytest.mark.parametrize(
    "file",
    [file for file in TABLE_FILES if file.stem in TABLES],
    ids=lambda file: f"{file.parent.name}/{file.stem}",
)
def test_a_table_is_what_its_cells_give(file: Path) -> None:
    summary = json.loads(file.read_text(encoding="utf-8"))
    for row in summary["rows"]:
        if row["prompts"] == "all" and row["metric"] in ("identity", "clip_t", "dino_i"):
            first = {f"{name}_{number}" for name, number in of_toybox(row["n"])}
            means: dict[str, list[float]] = {}
            for cell in cells_of(file.parent, row["variant"]):
                if cell["subject"] not in first or cell["seed"] >= summary.get("seeds", 1):
                    continue
                values = [picture[row["metric"]] for picture in cell["rows"]]
                means.setdefault(cell["subject"], []).append(fmean(values))
            assert row["n"] == len(means)
            assert row["mean"] == pytest.approx(fmean(map(fmean, means.values())), rel=5e-6)
