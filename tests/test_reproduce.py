"""The reproduction: what is planned, what a cell's key is of, what tables and --verify say."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stub_cells
from stub_cells import a_cell

from eqdiff.errors import UserError
from eqdiff.settings.presets import PRESETS, parse
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.train import TrainConfig
from studies.reproduce import cell as cell_module
from studies.reproduce import cost, engine_local, forecast, questions, tables, verify
from studies.reproduce import run as run_module
from studies.reproduce import subjects as subject_folders
from studies.reproduce.cell import Cell, changed, drawing_words, training_words
from studies.reproduce.code import code_mark
from studies.reproduce.estimates import estimate, subjects_to_tell, verdict
from studies.reproduce.methods import METHODS, PAPER_TABLES, TABLES
from studies.reproduce.plan import Ground, Plan, made, settings_of
from studies.reproduce.settings import ReproduceConfig
from studies.reproduce.store import Store, result_of, sealed
from studies.reproduce.subjects import CLASS_WORDS, Subject

ROOT = Path(__file__).resolve().parent.parent
REAL = Ground("base", "b", "clip", "dino", "e", 512)
TOYBOX = Ground(str(ROOT / "assets" / "toybox" / "base"), "b", "clip", "dino", "e", 128)
SPEEDS = cost.Speeds(unit=1.0, encode=0.0, decode=0.0, start=0.0)


def subject(name: str, word: str = "mug") -> Subject:
    return Subject(name, word, Path("photos") / name, f"digest of {name}")


def a_plan(ground: Ground = REAL, count: int = 3, **changes: Any) -> Plan:
    config = ReproduceConfig(**changes)
    return made(config, ground, [subject(f"s{number}") for number in range(count)])


# -- methods, subjects, plans ----------------------------------------------------------------------


@pytest.mark.parametrize("ground", [REAL, TOYBOX], ids=["real", "toybox"])
def test_every_method_is_command_lines_that_the_scripts_take(ground: Ground) -> None:
    plan = made(ReproduceConfig(tables=tuple(TABLES)), ground, [subject("s")])
    usual = "toybox" if ground is TOYBOX else "paper"
    for name in METHODS:
        train, _ = settings_of(plan.cells[name, "s", 0])
        preset = name.split()[1] if name.startswith("preset ") else usual
        resolution = 128 if name in questions.PRESETS else ground.resolution
        assert (train.preset, train.resolution) == (preset, resolution), name


def test_tables_name_methods_that_there_are_and_share_what_is_equal() -> None:
    for wanted in TABLES.values():
        assert {wanted.against, *wanted.methods} <= METHODS.keys()
    cells = a_plan(count=1, tables=tuple(TABLES)).cells
    keys = {name: cells[name, "s0", 0].key for name in METHODS}
    assert keys["EqDiff"] == keys["F"] == keys["0.1 0.1 0.8"]
    assert keys["Custom Diffusion"] == keys["A"]  # the paper's figures of the two are equal too
    assert keys["Infusion"] == keys["Infusion, 1e-2"]
    on_toybox = a_plan(TOYBOX, count=1, tables=tuple(TABLES)).cells
    same = {on_toybox[name, "s0", 0].key for name in ("E", "E, guidance 5", "D", "C")}
    assert len(same) == 4
    trained = {on_toybox[name, "s0", 0].training_key for name in ("E", "E, guidance 5")}
    assert len(trained) == 1
    assert on_toybox["half noisy, rate 5e-4", "s0", 0].training_key not in trained


def test_the_papers_letters_keep_its_way_of_training_and_the_presets_row_is_the_preset() -> None:
    cells = a_plan(TOYBOX, count=1, tables=tuple(TABLES)).cells
    real = a_plan(count=1, tables=tuple(TABLES)).cells
    for letter in "ABCDEF":
        train, _ = settings_of(cells[letter, "s0", 0])
        assert (train.prior_kind, train.band_probs) == ("images", (0.1, 0.1, 0.8)), letter
        # K/V at the rates that led with them, and two photos a step, whatever the preset has
        assert (train.unet_weights, train.train_batch_size) == ("kv", 2), letter
        assert (train.learning_rate, train.token_learning_rate) == (1e-3, 3e-3), letter
        train, _ = settings_of(real[letter, "s0", 0])
        assert (train.unet_weights, train.learning_rate) == ("kv", 4e-5), letter
    said = changed(TrainConfig, cells[questions.PRESET, "s0", 0].train)
    assert said == changed(TrainConfig, ["--preset", "toybox"])


def test_wide_prompts_are_other_cells_of_the_same_trainings() -> None:
    usual, wide = (
        a_plan(TOYBOX, count=1, wide_prompts=wide).cells["EqDiff", "s0", 0]
        for wide in (False, True)
    )
    assert Counter(kind for _, kind in usual.prompts) == {"plain": 8, "style": 8}
    assert Counter(kind for _, kind in wide.prompts) == {"plain": 10, "style": 14}
    assert usual.key != wide.key and usual.training_key == wide.training_key


def test_of_methods_that_are_one_cell_each_gives_the_same_result_whoever_was_asked() -> None:
    alone = a_plan(count=1, tables=("table1",)).cells["Custom Diffusion", "s0", 0]
    beside = a_plan(count=1, tables=("table1", "fig7")).unique()[alone.key]
    assert beside.train != alone.train
    rows = [{"key": cell.key, "train": list(cell.train), "rows": []} for cell in (alone, beside)]
    assert result_of(rows[0]) == result_of(rows[1]) != result_of({**rows[0], "rows": [1]})


def test_claims_of_others_than_the_paper_are_the_tables_own() -> None:
    wanted = TABLES["methods"]
    assert {name for claim in wanted.directions for name in claim[:2]} <= {*wanted.methods}
    plan = a_plan(tables=("methods",))
    more = {"Custom Diffusion, DreamMatcher": 0.6}
    rows = rows_of(plan, lambda method, metric: more.get(method, 0.5))
    said = json.loads(tables.rendered("methods", plan, rows, {})[1])["directions"]
    verdicts = {row["claim"]: row["verdict"] for row in said}
    assert len(verdicts) == len(wanted.directions)
    assert verdicts["Custom Diffusion, DreamMatcher > Custom Diffusion, plain dino_i"] == "holds"
    claim = "Custom Diffusion > Custom Diffusion, DreamMatcher, style clip_t"
    assert verdicts[claim] == "does not hold"


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1.0, 2.0, 3.0], 4),  # 3.182 * 1 / sqrt(4) < 2 < 4.303 * 1 / sqrt(3)
        ([0.0, 0.0, 3.0], 14),  # 2.160 * 1.732 / sqrt(14) < 1 < 2.179 * 1.732 / sqrt(13)
        ([-1.0, 1.0, 0.0], None),
        ([5.0], None),
    ],
)
def test_how_many_subjects_would_tell_is_by_their_mean_and_spread(
    values: list[float], wanted: int | None
) -> None:
    assert subjects_to_tell(estimate(values)) == wanted


def test_the_full_table_is_31_subjects_by_77_prompts() -> None:
    assert len(CLASS_WORDS) == 31
    plan = made(
        ReproduceConfig(tables=("table1",)), REAL, [subject(n, w) for n, w in CLASS_WORDS.items()]
    )
    assert len(plan.unique()) == 31 * 4
    for cell in plan.cells.values():
        kinds = [kind for _, kind in cell.prompts]
        assert (kinds.count("plain"), kinds.count("style")) == (55, 22)
    live = {text for text, _ in plan.cells["EqDiff", "dog", 0].prompts}
    assert live != {text for text, _ in plan.cells["EqDiff", "can", 0].prompts}


def test_what_only_looks_leaves_the_settings_of_the_last_run(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    run_module.own_folder(folder, ReproduceConfig(plan=True, num_subjects=1))  # it has none yet
    run_module.own_folder(folder, ReproduceConfig(num_subjects=2))
    for looks in ({"plan": True}, {"verify": ("fig7",)}, {"rating_sheet": "fig7"}):
        run_module.own_folder(folder, ReproduceConfig(num_subjects=3, **looks))
    assert json.loads((folder / "config.json").read_text())["num_subjects"] == 2


def test_a_smoke_plan_goes_through_every_table_in_few_cells() -> None:
    plan = made(ReproduceConfig(smoke=True), TOYBOX, [subject("s")])
    assert len(plan.unique()) == 14
    for cell in plan.cells.values():
        train, draw = settings_of(cell)
        assert (train.max_train_steps, draw.num_inference_steps, len(cell.prompts)) == (3, 2, 2)


def test_methods_that_are_asked_for_come_with_what_they_are_compared_with() -> None:
    plan = a_plan(tables=("table1", "fig7"), methods=("DreamBooth",))
    assert plan.methods_of("table1") == ["EqDiff", "DreamBooth"]
    assert plan.methods_of("fig7") == []
    assert {name for name, _, _ in plan.cells} == {"EqDiff", "DreamBooth"}


CHANGES: dict[str, Any] = {
    "base_digest": "other",
    "eyes_digest": "other",
    "subject_digest": "other",
    "class_word": "cup",
    "train": ("--preset", "toybox", "--masking", "noise"),
    "draw": ("--guidance_scale", "5"),
    "seed": 1,
    "prompts": (("a {}", "plain"),),
    "images": 2,
}
USUAL_STEPS = str(PRESETS["toybox"]["max_train_steps"])  # said, it is what the preset has
SAME: dict[str, Any] = {
    "base": "/elsewhere/base",
    "photos": "/elsewhere/photos",
    "threads": 2,
    "train": ("--preset", "toybox", "--max_train_steps", USUAL_STEPS, "--report_to", "none"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_key_of_a_cell_is_of_all_that_decides_its_result(name: str) -> None:
    assert dataclasses.replace(a_cell(0), **{name: CHANGES[name]}).key != a_cell(0).key


@pytest.mark.parametrize("name", SAME)
def test_the_key_of_a_cell_is_of_nothing_else(name: str) -> None:
    assert dataclasses.replace(a_cell(0), **{name: SAME[name]}).key == a_cell(0).key


def test_a_cell_survives_json_and_its_flags_are_read_once() -> None:
    cell = a_cell(3, ("--masking", "noise"))
    assert Cell.of(json.loads(json.dumps(dataclasses.asdict(cell)))) == cell
    folder = Path("out")
    assert training_words(cell, folder)[-2:] == ["--masking", "noise"]
    assert "--no-safety_checker" in drawing_words(cell, folder)
    assert changed(TrainConfig, a_cell(3).train)["masking"] == "loss"  # the preset's own
    assert "masking" not in changed(TrainConfig, cell.train)  # the default


def test_a_cells_precision_is_told_to_training_and_drawing_and_is_no_part_of_its_key() -> None:
    cell = a_cell(3)
    full = dataclasses.replace(cell, precision="no")
    assert full.key == cell.key and full.training_key == cell.training_key
    for words in (training_words, drawing_words):
        said = words(full, Path("out"))
        assert said[said.index("--mixed_precision") + 1] == "no"
        assert "--mixed_precision" not in words(cell, Path("out"))


def photo_folder(folder: Path, source: Path, masks: bool = True) -> Path:
    shutil.copytree(source, folder)
    if not masks:
        shutil.rmtree(folder / "masks")
    return folder


def test_subjects_are_found_in_dreambooths_layout_and_copied(
    tmp_path: Path, tiny_subject: Path
) -> None:
    root = tmp_path / "photos"
    photo_folder(root / "dog6", tiny_subject)
    photo_folder(root / "mine", tiny_subject)
    (root / "mine" / "class.txt").write_text("cat\n")
    (root / "empty").mkdir()
    folders = subject_folders.find_subjects(root)
    assert [path.name for path in folders] == ["dog6", "mine"]

    found, sheets = subject_folders.prepared(folders, tmp_path / "work")
    assert [(each.name, each.class_word, each.live) for each in found] == [
        ("dog6", "dog", True),
        ("mine", "cat", True),
    ]
    assert not sheets
    again, _ = subject_folders.prepared(folders, tmp_path / "elsewhere")
    assert [each.digest for each in again] == [each.digest for each in found]
    assert sorted(path.name for path in (found[0].folder / "masks").iterdir()) == [
        f"{number:02}.png" for number in range(4)
    ]

    (root / "dog6" / "00.jpg").unlink()
    fewer, _ = subject_folders.prepared(folders, tmp_path / "work")
    assert not (fewer[0].folder / "00.jpg").exists()
    assert fewer[0].digest != found[0].digest and fewer[1].digest == found[1].digest


@pytest.mark.slow
def test_masks_are_made_beside_the_photos_of_others_and_wait_for_approval(
    tmp_path: Path, tiny_subject: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    folder = photo_folder(root / "can", tiny_subject, masks=False)
    before = sorted(folder.rglob("*"))
    work = tmp_path / "work"
    found, sheets = subject_folders.prepared([folder], work)
    assert sorted(folder.rglob("*")) == before  # theirs stays as it was
    assert len(list((found[0].folder / "masks").glob("*.png"))) == 4
    assert [sheet.is_file() for sheet in sheets] == [True]

    with pytest.raises(UserError, match="masks of 1 subjects were made: look at .*overlay.jpg"):
        subject_folders.require_approved(sheets, work, False)
    subject_folders.require_approved(sheets, work, True)
    subject_folders.require_approved(sheets, work, False)  # once is enough
    again, _ = subject_folders.prepared([folder], work)
    assert again[0].digest == found[0].digest


# -- tables ----------------------------------------------------------------------------------------


def rows_of(plan: Plan, level: Callable[[str, str], float] = lambda method, name: 0.5) -> dict:
    """Rows of a plan's cells, all metrics at a level, with a little of its own for each subject."""
    rows = {}
    for (method, name, _), cell in plan.cells.items():
        own = 0.001 * int(name[1:])
        pictures = [
            {"prompt": text, "kind": kind}
            | {metric: level(method, metric) + own for metric in stub_cells.METRICS}
            for text, kind in cell.prompts
        ]
        rows[cell.key] = {"key": cell.key, "code": code_mark(), "rows": pictures}
    return rows


def test_a_table_has_the_papers_figures_beside_ours_intervals_and_verdicts() -> None:
    def level(method: str, metric: str) -> float:
        return 0.6 if METHODS[method] == METHODS["F"] else 0.5

    plan = a_plan(tables=("table1", "fig7", "fig9"))
    for name in plan.config.tables:
        text, summary = tables.rendered(name, plan, rows_of(plan, level), {})
        found = json.loads(summary)
        assert not found["missing"] or "in the paper and not here: ELITE" in found["missing"][0]
        assert len(found["rows"]) == len(TABLES[name].methods) * 3 * 8
        assert "smallest detectable" in text
    table1, summary = tables.rendered("table1", plan, rows_of(plan, level), {})
    assert "0.782 0.810 0.670 |" in table1 and "0.725 0.765 0.537 |" in table1
    said = {row["claim"]: row["verdict"] for row in json.loads(summary)["directions"]}
    assert said["EqDiff > DreamBooth, plain dino_i"] == "holds"
    assert said["DreamBooth > EqDiff, style clip_t"] == "does not hold"  # the paper's one exception
    assert len(said) == 18
    paper = {row["claim"]: row["paper"] for row in json.loads(summary)["directions"]}
    assert paper["EqDiff > DreamBooth, plain clip_t"] == pytest.approx((0.782 - 0.777) / 2.5)
    nine = json.loads(tables.rendered("fig7", plan, rows_of(plan, level), {})[1])["directions"]
    assert len(nine) == 9
    best = json.loads(tables.rendered("fig9", plan, rows_of(plan, level), {})[1])["directions"]
    assert {row["verdict"] for row in best} == {"holds"} and len(best) == 5


def test_a_table_says_what_is_missing_why_and_what_is_of_other_code() -> None:
    plan = a_plan(tables=("table1",), methods=("EqDiff", "DreamBooth"))
    rows = rows_of(plan)
    gone = plan.cells["DreamBooth", "s1", 0].key
    other = plan.cells["EqDiff", "s2", 0].key
    del rows[gone]
    rows[other]["code"] = "older"
    text, _ = tables.rendered("table1", plan, rows, {gone: "error: out of memory"})
    assert "- missing: 1 of 6 cells" in text
    assert "- failed: DreamBooth, s1, seed 0: error: out of memory" in text
    assert "- made by other code than this: 1 cells; --fresh runs them again" in text
    assert "- not asked for: Textual Inversion, Custom Diffusion" in text
    nothing, _ = tables.rendered("table1", plan, {}, {})
    assert "- missing: 6 of 6 cells" in nothing


def test_no_cells_give_no_verdict() -> None:
    assert verdict(estimate([])) == "no cells"


# -- cost ------------------------------------------------------------------------------------------


def test_the_counted_cost_is_that_of_the_benchmark() -> None:
    """docs/speed.md: a step of the full method 13.69 u, of A 8.39 u; a picture of 77 117.4 u."""
    cells = a_plan(count=1).cells
    for name, expected in (("F", 13.69), ("A", 8.39)):
        train, draw = settings_of(cells[name, "s0", 0])
        assert cost.step_units(train) == pytest.approx(expected, rel=0.01)
    assert cost.image_units(train, draw, 77) == pytest.approx(100, rel=0.01)
    train, draw = settings_of(cells["F", "s0", 0])
    assert cost.image_units(train, draw, 77) == pytest.approx(117.4, rel=0.05)
    assert cost.encodings(train, 6) == 18 + 400 + 200


@pytest.mark.parametrize(
    ("flag", "picture", "once"), [("--dreammatcher", 106.9, 144.0), ("--freecustom", 106.9, 47.6)]
)
def test_what_acts_at_sampling_costs_what_the_benchmark_counts(
    flag: str, picture: float, once: float
) -> None:
    """docs/methods_sampling.md: u of an image of 50 steps, and once a subject."""
    train = parse(TrainConfig, ["--no-rra"])
    draw = parse(SampleConfig, [flag, "--no-rra", "--num_inference_steps", "50"])
    assert cost.image_units(train, draw, 10**9) == pytest.approx(picture, rel=0.01)
    assert cost.image_units(train, draw, 1) == pytest.approx(picture + once, rel=0.01)


def test_the_forecast_follows_finished_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_photo_count", lambda folder: 5)
    plan = a_plan(tables=("fig7",))
    cells = list(plan.unique().values())
    counted = forecast.total_seconds(plan, cells, SPEEDS)
    by_hand = sum(forecast.seconds_of(cell, SPEEDS, 5) for cell in cells)
    train, _ = settings_of(cells[0])
    assert counted == pytest.approx(by_hand + cost.class_seconds(train, SPEEDS))

    rows = [
        {"key": cell.key, "seconds": {"train": 3 * forecast.seconds_of(cell, SPEEDS, 5)}}
        for cell in cells[:3]
    ]
    assert forecast.correction(cells, rows, plan, SPEEDS) == pytest.approx(3)
    assert forecast.correction(cells, rows[:2], plan, SPEEDS) == 1
    lines = forecast.forecast(plan, cells, rows, SPEEDS)
    assert "by finished cells" in lines[0] and "hours on one H100" in lines[1]


def test_kept_concepts_weigh_what_their_parameters_do() -> None:
    train, _ = settings_of(a_plan(count=1).cells["F", "s0", 0])
    assert forecast.concept_bytes(train) == pytest.approx(206.4e6)
    kept = forecast.disk(a_plan(keep=("concepts",)), [a_cell(0)])
    assert kept > forecast.disk(a_plan(keep=("concepts",), drop=("concepts",)), [a_cell(0)])


# -- verify ----------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, Store]:
    """Cells of all tables, run by the stub, and their tables; a picture's file has its figures."""
    plan = a_plan(count=2, verify=PAPER_TABLES)
    store = Store(tmp_path / "out")
    engine_local.work(store, list(plan.unique().values()), ("pictures",), whole)
    tables.write(plan, store.gather(), {}, store.folder)
    monkeypatch.setattr(verify, "_measure", lambda given: measure)
    return plan, store


def whole(cell: Cell, folder: Path) -> dict[str, Any]:
    """A stub's row with all that a real one says."""
    row = stub_cells.run(cell, folder)
    images = folder / "samples" / "images"
    for number, picture in enumerate(row["rows"]):
        file = images / f"{number}.png"
        file.write_text(json.dumps({n: picture[n] for n in stub_cells.METRICS}))
        picture["file"] = file.name
    pictures = {file.name: cell_module.digest_of_file(file) for file in images.iterdir()}
    return {**dataclasses.asdict(cell), **row, "code": code_mark(), "pictures": pictures}


def measure(cell: Cell, rows: list[dict[str, Any]], images: Path) -> list[dict[str, Any]]:
    return [row | json.loads((images / row["file"]).read_text()) for row in rows]


def verified(plan: Plan, store: Store, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    capsys.readouterr()
    status = verify.verify(plan, store, run_cell=whole, seed=0)
    return status, capsys.readouterr().out


def test_what_was_not_touched_verifies_on_three_tables(
    finished: tuple[Plan, Store], capsys: pytest.CaptureFixture
) -> None:
    status, said = verified(*finished, capsys)
    assert status == 0, said
    for name in PAPER_TABLES:
        assert f"verify {name}: " in said
    assert said.count("3 cells run again: agree") == 3


def tamper_row(store: Store, key: str, reseal: bool) -> None:
    """Makes a cell's figures better than they were."""
    row = store.rows()[key]
    for picture in row["rows"]:
        picture["dino_i"] += 0.3
    store.save(row) if reseal else None
    if not reseal:
        lines = [json.dumps(row if other == key else kept) for other, kept in store.rows().items()]
        store.file.write_text("".join(line + "\n" for line in lines))


@pytest.mark.parametrize("reseal", [False, True])
def test_a_cell_that_was_tampered_with_does_not_verify(
    finished: tuple[Plan, Store], capsys: pytest.CaptureFixture, reseal: bool
) -> None:
    plan, store = finished
    key = plan.cells["F", "s0", 0].key
    tamper_row(store, key, reseal)
    tables.write(plan, store.gather(), {}, store.folder)  # and a table that fits
    status, said = verified(plan, store, capsys)
    assert status == 1
    culprit = "dino_i of 0.png is" if reseal else "its row was changed after it was written"
    assert f"EqDiff, s0, seed 0: {culprit}" in said


def test_a_row_without_pictures_is_found_out_by_running_its_cell_again(
    finished: tuple[Plan, Store], capsys: pytest.CaptureFixture
) -> None:
    plan, store = finished
    for key in store.rows():
        tamper_row(store, key, reseal=True)
        shutil.rmtree(store.kept(key))
    tables.write(plan, store.gather(), {}, store.folder)
    status, said = verified(plan, store, capsys)
    assert status == 1 and said.count("run again, its dino_i is") == 9


def test_a_picture_or_table_that_was_tampered_with_does_not_verify(
    finished: tuple[Plan, Store], capsys: pytest.CaptureFixture
) -> None:
    plan, store = finished
    key = plan.cells["A", "s1", 0].key
    (store.kept(key) / "images" / "1.png").write_text("{}")
    page = store.folder / "table1.md"
    page.write_text(page.read_text().replace("0.5", "0.9"))
    status, said = verified(plan, store, capsys)
    assert status == 1
    assert "picture 1.png is not the one that was measured" in said
    assert "verify table1: table1.md is not what its cells give" in said


def test_a_row_under_another_cells_key_does_not_verify(finished: tuple[Plan, Store]) -> None:
    plan, store = finished
    keys = list(plan.unique())
    other = dict(store.rows()[keys[0]], key=keys[1])
    found, _ = verify.row_problems(plan.unique()[keys[1]], sealed(other), store)
    assert "its row is not of the cell that its key names" in found


# -- the command line ------------------------------------------------------------------------------


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="it holds files that are not ours"):
        run_module.own_folder(tmp_path, ReproduceConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
