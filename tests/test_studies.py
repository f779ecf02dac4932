"""Studies: what is compared, how cells become tables, and that a cell on disk is not run again."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from eqdiff.base.load import load_base
from eqdiff.errors import UserError
from eqdiff.settings.presets import parse
from eqdiff.settings.train import TrainConfig
from studies import charts
from studies.ablation import cells as cells_module
from studies.ablation import run as run_module
from studies.ablation import store
from studies.ablation.cells import settings_of
from studies.ablation.code import FILES, code_mark
from studies.ablation.figure import figure
from studies.ablation.instruments import Instruments
from studies.ablation.paper import PAPER, as_cells
from studies.ablation.tables import (
    by_subject,
    common,
    difference,
    directions,
    estimate,
    finite,
    markdown,
    table,
    verdict,
)
from studies.ablation.variants import STUDIES, prompts, subjects
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

LEVEL = {"A": 0.5, "B": 0.6, "C": 0.6, "D": 0.55, "E": 0.56, "F": 0.7}


def a_cell(variant: str, subject: str, seed: int = 0, **figures: float) -> dict[str, Any]:
    row = (
        dict.fromkeys(("clip_t", "clip_i", "dino_i", "identity", "context", "style"), 0.5) | figures
    )
    rows = [{**row, "kind": kind, "prompt": kind} for kind in ("plain", "style")]
    return {"variant": variant, "subject": subject, "seed": seed, "rows": rows, "base": "b"}


def test_every_variant_is_a_command_line_that_training_takes() -> None:
    for name, study in STUDIES.items():
        assert study.against in study.variants, name
        assert set(study.draw) <= set(study.variants), name
        for flags in (flags for flags in study.variants.values() if flags is not None):
            assert isinstance(parse(TrainConfig, ["--preset", "toybox", *flags]), TrainConfig)


def test_the_ablation_is_the_papers() -> None:
    settings = {
        n: parse(TrainConfig, ["--preset", "toybox", *f])
        for n, f in STUDIES["ablation"].variants.items()
        if f
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


def test_prompts_are_twelve_and_twelve_and_subjects_are_of_many_classes() -> None:
    asked = prompts()
    assert [p.kind for p in asked] == ["plain"] * 12 + ["style"] * 12
    assert len({p.text for p in asked}) == 24
    assert all(
        p.context in CONTEXT_NAMES and p.style in STYLE_NAMES and p.text.count("{}") == 1
        for p in asked
    )
    assert {p.style for p in asked} == set(STYLE_NAMES)
    assert len({name for name, _ in subjects(8)}) == 8
    assert len(set(subjects(16))) == 16


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
    rows = table(cells, "AF", "F")
    assert len(rows) == 2 * 3 * 7
    row = next(
        r for r in rows if (r["variant"], r["prompts"], r["metric"]) == ("A", "all", "dino_i")
    )
    assert row["n"] == 3
    assert row["difference"]["mean"] == pytest.approx(-0.2)
    assert "0.500 (0.500 to 0.500) *" in markdown(rows, "F", {})


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results, concepts and locks of the studies lie in a folder of the test."""
    monkeypatch.setattr(store, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(store, "WORK", tmp_path / "work")
    return tmp_path


@pytest.fixture
def no_models(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study runs without a base and without instruments."""
    monkeypatch.setattr(run_module, "load_base", lambda name: None)
    monkeypatch.setattr(run_module, "Instruments", lambda: None)
    return own_folders


def test_a_killed_study_goes_on_where_it_stood(
    no_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = dataclasses.replace(STUDIES["gate"], subjects=2)
    all_cells = run_module.cells_of("gate", study)
    ran: list[Any] = []

    def run(cell: Any, *_: Any) -> None:
        if len(ran) == stop:
            raise KeyboardInterrupt
        ran.append(cell)
        store.add_cell("gate", a_cell(cell.variant, cell.subject, cell.seed))

    monkeypatch.setattr(run_module, "run", run)
    alone: Any = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        run_module.run_study("gate", study, alone)
    stop = -1
    run_module.run_study("gate", study, alone)
    assert ran == all_cells

    run_module.render("gate", study)
    folder = no_models / "results" / "gate"
    assert json.loads((folder / "table.json").read_text())["cells"] == 4
    assert "| zero | plain |" in (folder / "table.md").read_text()
    with Image.open(folder / "figure.png") as image:
        width, height = (round(side * charts.DPI) for side in charts.PANEL)
        assert image.size == (2 * width, height)


def test_cells_are_read_in_the_order_of_their_keys_and_a_second_one_replaces_the_first(
    own_folders: Path,
) -> None:
    for variant, level in (("B", 0.1), ("A", 0.2), ("B", 0.3)):
        store.add_cell("gate", a_cell(variant, "x", identity=level))
    file = store.cells_file("gate")
    rows = store.read_cells(file)
    assert [(row["variant"], row["rows"][0]["identity"]) for row in rows] == [
        ("A", 0.2),
        ("B", 0.3),
    ]
    assert len(file.read_text().splitlines()) == 2


def test_a_torn_last_line_counts_as_not_written_and_any_other_is_refused(own_folders: Path) -> None:
    for variant in "ABC":
        store.add_cell("gate", a_cell(variant, "x"))
    file = store.cells_file("gate")
    whole = file.read_text()

    file.write_text(whole[:-40])
    assert [row["variant"] for row in store.read_cells(file)] == ["A", "B"]
    store.add_cell("gate", a_cell("C", "x"))
    assert file.read_text() == whole

    file.write_text("torn\n" + whole)
    with pytest.raises(UserError, match="cells.jsonl, line 1: not JSON"):
        store.read_cells(file)


# adds cells FIRST, FIRST + 1, ... COUNT of them to the study "gate"; the first word says where
WRITER = """
import sys
from pathlib import Path
from studies.ablation import store

folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store.RESULTS, store.WORK = folder / "results", folder / "work"
for number in range(first, first + count):
    store.add_cell("gate", {"variant": "A", "subject": "x", "seed": number, "rows": ["r" * 5000]})
    print(number, flush=True)
"""


def writer(folder: Path, first: int, count: int) -> subprocess.Popen:
    here = {**os.environ, "PYTHONPATH": str(store.ROOT)}
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(count)]
    return subprocess.Popen(command, env=here, stdout=subprocess.PIPE, text=True)


def test_processes_that_write_at_once_lose_no_cell(own_folders: Path) -> None:
    writers = [writer(own_folders, first, 30) for first in (0, 100, 200)]
    for process in writers:
        process.communicate(timeout=60)
    seeds = [row["seed"] for row in store.read_cells(store.cells_file("gate"))]
    assert seeds == [*range(30), *range(100, 130), *range(200, 230)]


def test_a_writer_killed_at_any_time_leaves_whole_cells_and_no_lock(own_folders: Path) -> None:
    for round_number in range(3):
        process = writer(own_folders, 1000 * round_number, 1000)
        for _ in range(3 + 2 * round_number):
            written = int(process.stdout.readline())
        process.kill()
        process.wait()
        process.stdout.close()
        seeds = {row["seed"] for row in store.read_cells(store.cells_file("gate"))}
        assert set(range(1000 * round_number, written + 1)) <= seeds
    store.add_cell("gate", a_cell("B", "x"))
    assert store.read_cells(store.cells_file("gate"))[-1]["variant"] == "B"


def test_a_concept_is_trained_once_by_processes_that_need_it_at_a_time(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As guidance's do: its variants are one training."""
    trained: list[Path] = []

    def train(cell: Any, flags: Any, base: Any, folder: Path) -> None:
        trained.append(folder)
        time.sleep(0.3)
        folder.mkdir(parents=True)
        (folder / "concept.safetensors").touch()

    monkeypatch.setattr(cells_module, "train", train)
    base: Any = SimpleNamespace(fingerprint="b")
    cells = [cells_module.Cell("guidance", variant, "mug", 0, 0) for variant in ("3", "5", "7.5")]
    with ThreadPoolExecutor(3) as pool:
        files = list(pool.map(lambda cell: cells_module.concept(cell, (), base), cells))
    assert len(trained) == len(set(files)) == 1


def test_photos_are_drawn_once_by_processes_that_need_them_at_a_time(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one reads a photo that the other is writing."""
    written: list[Path] = []

    def write_subject(folder: Path, *_: Any, first: int) -> None:
        written.append(folder)
        time.sleep(0.3)
        folder.mkdir(parents=True)
        (folder / "instance.json").touch()

    monkeypatch.setattr(cells_module, "write_subject", write_subject)
    cell = cells_module.Cell("gate", "zero", "mug", 0, 0)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(cells_module.photos, [cell] * 3))
    assert written == [folders[0]]
    assert len(set(folders)) == 1


@pytest.mark.slow
def test_a_training_that_a_killed_study_left_behind_goes_on(
    tiny_base: Path, own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command line; checkpoints without a concept are what a stopped training leaves."""
    monkeypatch.setenv("EQDIFF_CACHE", str(own_folders / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cell = cells_module.Cell("gate", "zero", "mug", 0, 0)
    base = load_base(str(tiny_base))
    short = {"max_train_steps": 2, "checkpointing_steps": 1, "log_steps": 1}
    given = tuple(helpers.flags(helpers.TINY | short))
    file = cells_module.concept(cell, given, base)
    log = file.with_name("log.jsonl")
    whole = load_file(file)
    times = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]

    file.unlink()
    shutil.rmtree(file.with_name("checkpoints") / "step-000002", ignore_errors=True)
    assert cells_module.concept(cell, given, base) == file
    first = json.loads(log.read_text().splitlines()[0])
    assert first["seconds"] == times[0]  # the log of the stopped training goes on
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(file).items())


def test_in_the_figure_more_identity_is_higher_and_more_text_further_right() -> None:
    levels = {"A": (0.5, 0.6), "B": (0.7, 0.8), "C": (0.9, 0.7)}
    jitter = {"x": 0.0, "y": 0.01, "z": 0.02}
    cells = [
        a_cell(v, s, identity=i + e, clip_t=t + e)
        for v, (i, t) in levels.items()
        for s, e in jitter.items()
    ]
    for panel in figure(table(cells, "ABC", "A")).axes:
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
    panel = figure(table(cells, "AB", "A")).axes[0]
    heights = {}
    for bars in panel.containers:
        (segment,) = bars.lines[2][1].get_segments()
        heights[bars.get_label()] = float(segment[1][1] - segment[0][1])
    assert heights["A"] == 0
    assert heights["B"] == pytest.approx(2 * 4.303 * 0.01 / math.sqrt(3), rel=1e-3)  # not of .1


def test_means_are_of_the_subjects_that_all_variants_have() -> None:
    cells = [a_cell("A", s) for s in "xyz"] + [a_cell("F", s) for s in "xy"]
    assert {cell["subject"] for cell in common(cells)} == {"x", "y"}
    apart = [a_cell("A", "x"), a_cell("F", "y")]
    assert common(apart) == apart


def test_a_product_is_of_each_subjects_means() -> None:
    cells = [
        a_cell("A", "x", 0, identity=0.2, clip_t=0.5),
        a_cell("A", "x", 1, identity=0.4, clip_t=0.7),
    ]
    assert by_subject(cells, "A", "all", "identity x text") == {"x": pytest.approx(0.3 * 0.6)}


def test_the_papers_figures_stand_beside_ours() -> None:
    cells = [a_cell(v, s) for v in "AF" for s in "xyz"]
    lines = markdown(table(cells, "AF", "F"), "F", PAPER["ablation"]).splitlines()
    assert next(line for line in lines if line.startswith("| F | style")).endswith(
        "| 3 | 0.790 0.755 0.584 |"
    )
    assert {*PAPER["ablation"], "truth"} == set(STUDIES["ablation"].variants)
    assert set(PAPER["baselines"]) < set(STUDIES["baselines"].variants)


def test_two_ways_to_say_one_training_are_one_training() -> None:
    said = settings_of((), 0)
    assert said == settings_of(("--masking", "loss"), 0) == settings_of(("--gate_init", "zero"), 0)
    assert said != settings_of(("--masking", "noise"), 0)
    assert said != settings_of((), 1)


@pytest.mark.slow
def test_the_drawn_truth_is_what_was_asked_for(own_folders: Path) -> None:
    cell, other = (cells_module.Cell("ablation", "truth", "mug", index, 0) for index in (0, 1))
    eyes = Instruments()
    base: Any = SimpleNamespace(fingerprint="b")
    cells_module.run(cell, STUDIES["ablation"], base, eyes)
    (kept,) = store.read_cells(store.cells_file("ablation"))
    rows = kept["rows"]
    assert store.key_of(kept) == cell.key
    assert len(rows) == 24
    assert all(row["context"] for row in rows)
    assert fmean(row["identity"] for row in rows) > 0.85
    wrong = cells_module.measured(cells_module.drawn_truth(other), cell, eyes)
    assert fmean(row["identity"] for row in wrong) < 0.5


def test_a_concept_is_drawn_once_for_all_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawings: list[dict[str, float]] = []
    monkeypatch.setattr(cells_module, "concept", lambda *_: tmp_path / "concept.safetensors")
    monkeypatch.setattr(cells_module, "drawn", lambda file, options, base: drawings.append(options))
    monkeypatch.setattr(cells_module, "measured", lambda images, *_: [{"number": len(drawings)}])
    for study, variant in (
        ("ablation", "E"),
        ("gate", "zero"),
        ("guidance", "5"),
        ("guidance", "5"),
        ("guidance", "3"),
    ):
        cell = cells_module.Cell(study, variant, "mug", 0, 0)
        cells_module.rows_of(cell, STUDIES[study], SimpleNamespace(), None)
    assert drawings == [{}, {"guidance_scale": 5.0}, {"guidance_scale": 3.0}]


def test_bounds_of_one_subject_are_null_in_json() -> None:
    rows = finite(table([a_cell("A", "x")], "A", "A"))
    assert rows[0]["low"] is None
    assert "Infinity" not in json.dumps(rows)


@pytest.mark.slow
def test_two_processes_know_of_each_other(tmp_path: Path, forks: helpers.Server) -> None:
    """On a CPU, told by the environment as EQDIFF_PROCESSES=2 does: else each runs every cell."""
    script = store.ROOT / "studies" / "ablation" / "run.py"
    job = {"script": str(script), "argv": ["gate", "--table"], "path": str(store.ROOT), "ranks": 2}
    done = forks.ask(job | {"environment": {}})
    assert done["statuses"] == [0, 0], done["err"][-2000:]
    assert done["out"].count("done:") == 1


def test_processes_share_the_cells_and_none_is_run_twice(
    no_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first process is at its first cell, a second runs the others of two subjects."""
    ran: list[Any] = []
    ranks = [0]
    all_cells = run_module.cells_of("bands", STUDIES["bands"])

    def one() -> Any:
        return SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: None)

    def run(cell: Any, *_: Any) -> None:
        ran.append((cell, len(ranks)))
        if len(ranks) == 1:
            ranks.append(1)
            run_module.run_study("bands", dataclasses.replace(STUDIES["bands"], subjects=2), one())
            ranks.pop()
        store.add_cell("bands", a_cell(cell.variant, cell.subject, cell.seed))

    monkeypatch.setattr(run_module, "run", run)
    run_module.run_study("bands", STUDIES["bands"], one())
    assert sorted(cell.key for cell, _ in ran) == sorted(cell.key for cell in all_cells)
    assert [by for _, by in ran] == [1] + [2] * 11 + [1] * 12


def test_a_study_says_what_was_there_and_of_which_code_and_fresh_runs_it_again(
    no_models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran: list[Any] = []

    def run(cell: Any, *_: Any) -> None:
        ran.append(cell)
        row = a_cell(cell.variant, cell.subject, cell.seed)
        store.add_cell(cell.study, row | {"code": code_mark()})

    monkeypatch.setattr(run_module, "run", run)
    monkeypatch.setattr(
        run_module,
        "forget",
        lambda study, cells, base: store.remove_cells("gate", {cell.key for cell in cells}),
    )
    monkeypatch.setattr(run_module, "render", lambda name, study: None)
    words = ["gate", "--subjects", "1"]
    run_module.main(words)
    count = len(ran)
    assert f"done: 0 of {count} cells were there, {count} were run; " in capsys.readouterr().out

    run_module.main(words)
    line = (
        f"done: {count} of {count} cells were there, nothing was trained; --fresh runs them again"
    )
    assert line in capsys.readouterr().out
    assert len(ran) == count

    monkeypatch.setattr(run_module, "code_mark", lambda: "other")
    run_module.main(words)
    assert f"({count} made by other code than this)" in capsys.readouterr().out

    run_module.main([*words, "--fresh"])
    assert len(ran) == 2 * count


def test_the_mark_of_the_code_changes_with_the_code_and_not_with_its_comments(
    tmp_path: Path,
) -> None:
    for name in ("eqdiff", "toybox", "studies/ablation"):
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


def test_concepts_of_other_code_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cells_module.Cell("gate", "zero", "mug", 0, 0)
    base: Any = SimpleNamespace(fingerprint="b")
    files = []
    for mark in ("one", "two"):
        monkeypatch.setattr(cells_module, "code_mark", lambda mark=mark: mark)
        files.append(cells_module.concept_file(cell, (), base))
    assert files[0] != files[1]


def test_an_unknown_study_gets_one_line() -> None:
    with pytest.raises(SystemExit) as caught:
        run_module.main(["nonsense"])
    assert caught.value.code == 2
    with pytest.raises(UserError):
        run_module.main.__wrapped__(["nonsense"])


def test_chosen_variants_are_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(run_module, "run_study", lambda name, study, *_, **__: ran.append(study))
    monkeypatch.setattr(run_module, "render", lambda name, study: ran.append(study))
    run_module.main(["ablation", "--variants", "B", "A", "--subjects", "12"])
    assert (list(ran[0].variants), ran[0].subjects) == (["A", "B"], 12)
    assert ran[1].variants == STUDIES["ablation"].variants
    with pytest.raises(UserError, match="--variants G: ablation has A, B"):
        run_module.main.__wrapped__(["ablation", "--variants", "G"])


def test_the_papers_own_figures_show_its_directions() -> None:
    found = directions(as_cells("ablation"))
    assert all(estimate.mean > 0 for _, estimate, _ in found)
    assert found[1][1].mean == pytest.approx((0.770 + 0.774 - 0.755 - 0.746) / 2 / 2.5)
