"""The measures of quality: which size of a concept is called the best, and the chart of it."""

import json
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks import toybox_quality as door
from eqdiff.base.load import load_base
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import ASSETS
from eqdiff.settings.presets import parse
from eqdiff.settings.train import TrainConfig
from studies import charts
from studies.quality import (
    compress,
    compress_sd14,
    described,
    drawing,
    gap,
    grid,
    neighbours,
    side_by_side,
    toybox_quality,
)
from studies.quality.subjects import (
    PHRASES,
    Measure,
    bounds,
    instance_of,
    with_bounds,
    write_record,
)
from studies.reproduce import search
from toybox import curve
from toybox.captions import plain_caption
from toybox.customization import KINDS, SEEDS, truth_of
from toybox.customization import jobs as customization_jobs
from toybox.dataset import to_tensor
from toybox.instances import CLASS_NAMES, Instance, instance
from toybox.judges import Judges
from toybox.truth import drawings
from toybox.world import Scene, draw

# what each size loses: a lucky one below a bad one
LOSSES = {"fp32": 0.0, "half": 0.009, "quarter": 0.02, "eighth": 0.001}
COLOURS = ("colour", "colours")  # of plain pictures: named right, and the distance
SIZES = {"fp32": 1.0, "half": 0.5, "quarter": 0.25, "eighth": 0.125}


@pytest.fixture
def table() -> dict[str, dict[str, Any]]:
    """Two pictures of each size, whose levels are far apart."""
    rows = {
        name: [
            {
                "identity": 0.7 - loss + shift,
                "clip_t": 0.8,
                "context": 1.0,
                "style": 1.0,
                "ratio": SIZES[name],
                "kept_energy": 1.0,
            }
            for shift in (-0.1, 0.1)
        ]
        for name, loss in LOSSES.items()
    }
    return compress.summarize(rows)


def test_losses_are_paired(table: dict[str, dict[str, Any]]) -> None:
    assert table["quarter"]["identity_loss"] == pytest.approx((0.02, 0.02, 0.02))  # shifts cancel


def test_the_best_size_is_the_last_before_the_first_that_loses_too_much(
    table: dict[str, dict[str, Any]],
) -> None:
    assert [compress.within(row) for row in table.values()] == [True, True, False, True]
    assert compress.best_point(table) == "half"


def test_the_chart_has_each_size_and_rings_the_best(
    table: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    sheet = compress.chart(table, "half")
    for panel, figure in zip(sheet.axes, compress.FIGURES, strict=True):
        lines = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
        points = sorted((SIZES[name], row[f"{figure}_loss"][0]) for name, row in table.items())
        assert list(map(tuple, next(iter(lines.values())))) == points
        assert lines["best point"] == [[0.5, table["half"][f"{figure}_loss"][0]]]
        assert panel.get_xscale() == "log"

    charts.save(sheet, tmp_path / "a" / "chart.png")
    with Image.open(tmp_path / "a" / "chart.png") as image:
        width, height = (round(side * charts.DPI) for side in compress.PANEL)
        assert image.size == (width, 2 * height)
        assert "Software" not in image.info


def test_a_smaller_file_is_farther_from_the_uncompressed_weights(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at Stable Diffusion 1.4's sizes, on the tiny base: the real file is written and read."""
    monkeypatch.setattr(compress_sd14, "random_base", lambda: load_base(str(tiny_base)))
    found = []
    for megabytes in (0.30, 0.275):
        monkeypatch.setattr(compress_sd14, "MEGABYTES", megabytes)
        found.append(compress_sd14.measure_file())
    large, small = found
    assert large["within"] and small["within"]
    assert small["bytes_compressed"] < large["bytes_compressed"] < large["bytes_fp32"] / 2
    assert small["ranks"] < large["ranks"]
    assert small["root_mean_square_error"] > large["root_mean_square_error"] > 0


def test_the_bases_marks_are_drawn_from_its_progress(tmp_path: Path) -> None:
    curve.main(["--output", str(tmp_path / "progress.png")])
    with Image.open(tmp_path / "progress.png") as image:
        assert image.size == (1000, 400)

    rows = curve.read(curve.PROGRESS)
    marks = curve.figure(rows).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in marks.lines}
    assert list(lines) == list(curve.MARKS)
    assert lines["class"][0] == [rows[0]["samples"] / 1000, rows[0]["class_share"]]


def test_the_door_in_benchmarks_runs_the_measure_of_quality() -> None:
    assert door.main is toybox_quality.main


def test_figures_beyond_a_threshold_or_not_finite_are_missed() -> None:
    good = {**toybox_quality.LEAST, **toybox_quality.MOST}
    assert toybox_quality.missed(good) == {}
    assert toybox_quality.missed({}).keys() == good.keys()  # what is not measured is not reached
    bad = {"vae/psnr": 24.9, "plain/gap_closed_ours": float("nan"), "base/frechet_ratio": 3.1}
    assert set(toybox_quality.missed(good | bad)) == set(bad)


def test_the_judges_answers_stand_beside_each_picture_and_are_counted(tmp_path: Path) -> None:
    about = json.loads((grid.SUBJECT / "instance.json").read_text())
    subject = instance(about["table"], about["class"], about["index"])
    other = instance("dev", "bird", 12)
    prompts = [plain_caption("{}", "on the beach", "photo"), "a {} of glass"]
    rows = []
    for number, drawn in enumerate((subject, other)):
        images, _ = drawings(drawn, "on the beach", "photo", 7, 1)
        Image.fromarray(images[0]).save(tmp_path / f"{number}.png")
        rows.append({"file": f"{number}.png", "prompt": prompts[number], "seed": number})
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))

    answers = grid.answers(Judges.load(), tmp_path, subject)
    assert answers[0]["class"] == "mug" and answers[0]["class_right"] is True
    assert answers[1]["class"] == "bird" and answers[1]["class_right"] is None
    assert "1 of 1" in grid.table(answers).splitlines()[-1]
    wrong = grid.answers(Judges.load(), tmp_path, other)
    assert wrong[0]["class_right"] is False and "mug (wrong)" in grid.table(wrong)


def test_parts_that_are_left_out_keep_what_a_file_has_of_the_same_base(tmp_path: Path) -> None:
    file = tmp_path / "quality.json"
    assert toybox_quality.known(file, "one") == toybox_quality.known(None, "one") == ({}, [])
    facts = {"base": "one", "figures": {"vae/psnr": 25.3, "judge/sketch/colour": float("nan")}}
    write_record(file, facts, [{"subject": "mug", "ours": 2 / 3, "ours_style": True}] * 2)
    rows = [{"subject": "mug", "ours": 0.666667, "ours_style": True}] * 2
    assert toybox_quality.known(file, "one") == ({"vae/psnr": 25.3}, rows)
    assert toybox_quality.known(file, "other") == ({}, [])


def test_what_words_gain_is_paired_by_subject() -> None:
    """A subject with more pictures weighs no more than another."""

    def row(subject: str, kind: str, noun: float, words: float) -> dict[str, Any]:
        facts = {"subject": subject, "kind": kind, "noun": noun, "words": words}
        facts |= {"base": 0.5, "drawn": 1.0}
        facts |= {f"{who}_parts": 0.5 for who in ("noun", "words", "base", "drawn")}
        return facts | {
            f"{who}_{what}": 1 for who in ("noun", "words", "base") for what in ("context", "style")
        }

    rows = [row("a", kind, 0.5, 0.6) for kind in KINDS for _ in range(3)]
    rows += [row("b", kind, 0.6, 0.9) for kind in KINDS]
    found = described.table(rows)
    plain = found["plain/identity"]
    assert [plain[name] for name in ("noun", "words", "base", "drawn")] == pytest.approx(
        [0.55, 0.75, 0.5, 1.0]
    )
    assert plain["gain"][0] == pytest.approx(0.2) and plain["gap"][0] == pytest.approx(0.25)
    assert plain["gain"][1] < 0 < plain["gain"][2]  # of two subjects
    assert found["style/context"]["gain"] == (0, 0, 0) and "drawn" not in found["style/context"]
    text = described.as_text(found)
    assert len(text.splitlines()) == 2 + 8 and "| plain/identity | 0.550 | 0.750 |" in text


def test_a_setting_is_judged_against_the_best_caption_by_subject() -> None:
    """A subject with more pictures weighs no more than another in what is gained."""

    def row(subject: str, kind: str, first: float, second: float) -> dict[str, Any]:
        names = ("first", "second", "base", "drawn")
        facts = dict(zip(names, (first, second, 0.5, 0.9), strict=True))
        facts |= {"subject": subject, "kind": kind, "second_style": 0}
        usual = {f"{who}_{what}": 1 for who in names for what in ("context", "style", "parts")}
        return usual | {f"{who}_{what}": 1 for who in names for what in COLOURS} | facts

    rows = [row("a", kind, 0.6, 0.4) for kind in KINDS for _ in range(3)]
    rows += [row("b", kind, 0.8, 0.4) for kind in KINDS]
    found = neighbours.table(rows, ("first", "second"))
    plain = found["plain/first"]
    assert plain["closed"] == pytest.approx((0.65 - 0.5) / 0.4)
    assert plain["gain"][0] == pytest.approx(0.2) and plain["gain"][1] < 0.2 < plain["gain"][2]
    assert found["style/second"]["gain"] == pytest.approx((-0.1, -0.1, -0.1))
    assert (found["style/second"]["style"], plain["style"]) == (-1, 0)
    text = gap.as_text(found, digits=4).splitlines()
    assert (
        "| style/second | 0.4000 | -25 % | (-0.1000, -0.1000 to -0.1000) | +0.0, -100.0 |" in text
    )
    assert "| plain/drawn | 0.9000 |  |  |  |" in text


def test_of_one_subject_the_mean_is_told_and_no_bounds() -> None:
    assert with_bounds(bounds([0.25]), digits=2) == "(+0.25, ? to ?)"
    assert with_bounds(bounds([0.25, 0.25])) == "(+0.250, +0.250 to +0.250)"


def test_a_setting_that_is_not_drawn_again_keeps_its_figures_of_the_same_pictures() -> None:
    def row(prompt: str, **figures: float) -> dict[str, Any]:
        return {"subject": "mug", "kind": "plain", "prompt": prompt, "seed": 0} | figures

    before = [row("a", first=0.1, base=0.5), row("b", first=0.2, base=0.5)]
    found = neighbours.beside(before, [row("b", second=0.4, base=0.6), row("c", second=0.3)])
    assert found == [row("b", first=0.2, second=0.4, base=0.6), row("c", second=0.3)]


def test_a_setting_of_the_search_says_all_that_was_searched() -> None:
    """Else a change of the preset would change what a name means."""
    searched = (
        *("--high_noise_share", "--max_train_steps", "--learning_rate"),
        *("--unet_weights", "--train_batch_size"),
    )
    for name, flags in neighbours.SETTINGS.items():
        assert {*searched, "--token_learning_rate"} <= {*flags}, name
    for method in search.METHODS.values():
        assert {*searched, "--token_learning_rate"} <= {*method.train}


def test_one_of_the_ways_of_drawing_is_the_presets() -> None:
    """Its concepts and steps. Each says its guidance: a change of the preset keeps its meaning."""
    words = ("--preset", "toybox", "--instance_data_dir", str(ASSETS / "subjects" / "dotted_mug"))
    usual = parse(TrainConfig, words)
    setting, options = drawing.DRAWINGS["guidance 2, whole UNet, rate 2e-4, four photos a step"]
    asked = parse(TrainConfig, (*words, *neighbours.SETTINGS[setting]))
    assert replace(asked, guidance_scale=options["guidance_scale"]) == usual
    assert options == {"guidance_scale": 2.0, "num_inference_steps": usual.num_inference_steps}
    known = {*signature(EqDiffPipeline.__call__).parameters}
    known |= {*signature(StableDiffusionPipeline.__call__).parameters}
    for name, (setting, options) in drawing.DRAWINGS.items():
        assert setting in neighbours.SETTINGS, name
        assert {"guidance_scale"} <= {*options} <= known, name


def base_of(record: Path) -> str:
    """The base that a record was measured on: it may be one before the committed."""
    return json.loads(record.read_text())["base"]


def test_freecustoms_pictures_are_of_the_same_places_and_truths_as_the_presets() -> None:
    judges = Judges.load(ASSETS / "toybox")
    folder = ASSETS / "subjects" / "dotted_mug"
    measure = Measure(folder, judges, SEEDS)
    work = customization_jobs(SEEDS)
    assert gap.places("dotted_mug", measure) == [
        ("dotted_mug", job.kind, job.prompt, job.number) for job in work
    ]
    known = gap.known_rows(gap.KNOWN, base_of(gap.KNOWN))
    assert {tuple(row[name] for name in gap.PLACE) for row in known} > {
        *gap.places("dotted_mug", measure)
    }

    class SameVae:
        """A VAE that gives pictures back as they are."""

        device = "cpu"

        def encode(self, images: Any) -> Any:
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=images))

        def decode(self, latents: Any) -> Any:
            return SimpleNamespace(sample=latents)

    last = len(work) - 1
    truth = truth_of(work[last], last, instance_of(folder), SameVae())
    assert torch.equal(judges.identity(truth.images), measure.truth[last])

    with pytest.raises(UserError, match="of another base"):
        gap.known_rows(gap.KNOWN, "another")


def all_of(record: Path) -> list[tuple[Any, ...]]:
    """The places of a record's pictures."""
    return [gap.place_of(row) for row in json.loads(record.read_text())["rows"]]


def test_ways_that_are_not_drawn_keep_the_figures_of_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = gap.ROOT / "studies" / "results" / "gap.json"
    base = base_of(record)
    row = json.loads(record.read_text())["rows"][-1]
    found = gap.kept_before(record, base)
    place = tuple(row[name] for name in gap.PLACE)
    way = "base at guidance 2"
    figures = [found[place][name] for name in (way, f"{way}_context", f"{way}_style")]
    assert figures == row[way]
    assert gap.kept_before(record, "another") == gap.kept_before(None, base) == {}

    figure = {way: 0.5, f"{way}_context": 1.0, f"{way}_style": 1.0}
    loaded = replace(load_base(str(ASSETS / "toybox" / "base")), fingerprint=base_of(gap.KNOWN))
    monkeypatch.setattr(gap, "load_base", lambda _: loaded)
    monkeypatch.setattr(gap, "kept_before", lambda *_: dict.fromkeys(all_of(gap.KNOWN), figure))
    kept = tmp_path / "gap.json"
    gap.main(["--ways", "--work", str(tmp_path), "--json", str(kept)])
    assert "| plain/base at guidance 2 | 0.500 |" in capsys.readouterr().out
    assert set(json.loads(kept.read_text())["rows"][0]) == {*gap.PLACE, way}

    monkeypatch.setattr(gap, "kept_before", lambda *_: {})
    gap.main(["--ways", "--work", str(tmp_path)])  # no figures of any: what is known is told
    told = capsys.readouterr().out
    assert "| plain/ours |" in told and "guidance 2" not in told


def test_a_gap_is_closed_by_what_leads_from_the_best_caption_to_the_truth() -> None:
    rows = [
        dict.fromkeys(gap.WAYS, 0.5)
        | {"kind": kind, "base": 0.5 + moved, "drawn": 0.9 + moved, "ours": 0.4 + moved}
        | {"FreeCustom at guidance 3 to 1": 0.8 + moved, "noun": 0.3}
        | {"FreeCustom at guidance 2": 0.6 + moved}
        | {
            f"{who}_{what}": 1.0
            for who in (*gap.KNOWN_WAYS, "base", *gap.WAYS)
            for what in gap.TEXT
        }
        | {"FreeCustom at guidance 3 to 1_context": float(moved > 0)}
        for kind in KINDS
        for moved in (0.0, 0.02)
    ]
    found = gap.summarize(rows)
    assert found["plain/FreeCustom at guidance 3 to 1"]["closed"] == pytest.approx(0.75)
    assert found["style/FreeCustom at guidance 2"]["closed"] == pytest.approx(0.25)
    assert found["plain/ours"]["closed"] == pytest.approx(-0.25)
    assert found["plain/ours"]["gain"] == pytest.approx((-0.1, -0.1, -0.1))  # paired by picture
    assert found["style/base"]["identity"] == pytest.approx(0.51)
    text = gap.as_text(found).splitlines()
    figures = "| 0.810 | 75 % | (+0.300, +0.300 to +0.300) | -50.0, +0.0 |"
    figures += " (-0.4000, -0.4000 to -0.4000) |"
    assert f"| plain/FreeCustom at guidance 3 to 1 {figures}" in text

    kept = gap.kept_of(rows[0] | dict(zip(gap.PLACE, ("mug", "plain", "a photo", 0), strict=True)))
    assert kept["FreeCustom at guidance 3 to 1"] == [0.8, 0, 1]  # identity, place, style
    assert set(kept) == {*gap.PLACE, *gap.WAYS}


def test_the_words_of_a_subject_are_a_class_word_that_trainings_take() -> None:
    for name in CLASS_NAMES:
        for index in range(8):
            subject = instance("dev", name, index)
            for phrase in PHRASES.values():
                TrainConfig(class_word=phrase(subject))


def test_each_half_of_a_picture_of_two_is_its_own_subjects_or_the_others() -> None:
    pair = instance("dev", "mug", 0), instance("dev", "bird", 1)
    assert pair[0].colours[0] != pair[1].colours[0]
    judges = Judges.load(ASSETS / "toybox")

    def drawn(left: Instance, right: Instance) -> torch.Tensor:
        scenes = [Scene(left, "in the snow", "photo", seed, right) for seed in range(6)]
        return to_tensor(np.stack([draw(scene).image for scene in scenes]))

    draws = {
        "right": lambda pair, seeds: drawn(*pair),
        "swapped": lambda pair, seeds: drawn(pair[1], pair[0]),
    }
    rows, shown = side_by_side.measured([pair], draws, judges, seeds=1)
    (right,), (swapped,) = rows["right"], rows["swapped"]
    assert right["right"] > 0.8 and right["class"] > 0.9 and right["swapped"] < 0.2
    assert swapped["swapped"] > 0.8 and swapped["class"] < 0.1
    assert torch.equal(shown, drawn(*pair))
    lines = side_by_side.as_text({"by chance": [right, swapped]}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
