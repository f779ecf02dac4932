"""The instruments of the base.

What the judge should name, halves of pictures of two, colours without a judge, the Fréchet
distance, and what a concept is measured by.
"""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eqdiff.base.load import load_base
from eqdiff.errors import UserError
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import ASSETS
from toybox import customization
from toybox.customization import colour_distances, jobs, summarize, truth_of
from toybox.dataset import to_tensor
from toybox.guidance import knots_of
from toybox.handover import finished
from toybox.instances import CLASS_NAMES, EMBLEMS, PALETTE, PATTERNS, instance
from toybox.judge import UNKNOWN, VALUES, flat, halves, judge_model, labels_of, shares, split
from toybox.latents import encode_scenes
from toybox.marks import (
    captions_of,
    drawn,
    expected,
    frechet,
    main_colours,
    marked_pairs,
    marked_scenes,
)
from toybox.quality import generate, scales_of
from toybox.world import Scene, draw, held_out, held_out_pair


def test_the_judge_is_asked_what_is_drawn_and_no_colour_of_a_sketch() -> None:
    fish = instance("dev", "fish", 4)
    label = dict(zip(VALUES, labels_of(fish, "in the snow", "photo"), strict=True))
    assert VALUES["colour"][label["colour"]] == fish.colours[0]
    assert VALUES["second"][label["second"]] == fish.colours[1]
    assert PATTERNS[label["pattern"]] == fish.pattern
    assert EMBLEMS[label["emblem"]] == fish.emblem

    sketch = dict(zip(VALUES, labels_of(fish, "in the snow", "pencil sketch"), strict=True))
    assert sketch["colour"] == sketch["second"] == UNKNOWN
    assert sketch["pattern"] == label["pattern"]


def test_the_judges_head_has_a_logit_for_each_value() -> None:
    logits = judge_model()(pixel_values=torch.zeros(2, 3, 128, 128)).logits
    sizes = {name: part.shape[1] for name, part in split(logits).items()}
    assert sizes == {name: len(values) for name, values in VALUES.items()}


def test_shares_leave_out_what_cannot_be_seen() -> None:
    plain = PATTERNS.index("plain")
    dotted = PATTERNS.index("dotted")
    truth = torch.tensor(
        [
            [0, 0, 0, 1, 2, dotted, 0],
            [0, 0, 0, 1, 2, plain, 0],
            [0, 0, 3, UNKNOWN, UNKNOWN, dotted, 1],
        ]
    )

    named = {name: truth[:, i].clone() for i, name in enumerate(VALUES)}
    named["second"][1] = 5  # of a plain subject: not counted
    named["colour"][2] = 7  # of a sketch: not counted
    named["emblem"][0] = 3

    figures = shares(named, truth)
    assert figures["second"] == figures["colour"] == 1.0
    assert figures["emblem"] == pytest.approx(2 / 3)
    assert flat({"photo": figures})["photo/emblem"] == pytest.approx(0.6667)


def test_each_half_of_a_picture_of_two_shows_one_subject_whole() -> None:
    for scene in marked_pairs(6):
        picture = draw(scene)
        left, right = halves(to_tensor(picture.mask[None, ..., None].repeat(3, -1)))[0]
        assert left.shape == right.shape == (3, 128, 128)

        for window in (left, right):
            assert 0.1 < float((window > 0).float().mean()) < 0.8

        inside = (left > 0).sum() / 4 + (right > 0).sum() / 4  # enlarged twice each way
        assert float(inside / 3) > 0.97 * float((picture.mask > 0).sum())


def test_settings_are_chosen_on_other_scenes_than_the_marks_are_taken_on() -> None:
    marked, others = marked_scenes(200), marked_scenes(200, sample=1)
    assert not {scene.seed for scene in marked} & {scene.seed for scene in others}
    same = [a.instance == b.instance for a, b in zip(marked, others, strict=True)]
    assert sum(same) < 10
    assert all(held_out(a.instance.class_name, a.context, a.style) for a in others)


def test_marks_are_taken_on_held_out_scenes_with_all_that_words_can_say() -> None:
    scenes = marked_scenes(100)
    assert all(held_out(s.instance.class_name, s.context, s.style) for s in scenes)
    assert len({s.seed for s in scenes}) == 100
    assert expected(scenes).shape == (100, 7)

    for scene, text in zip(scenes, captions_of(scenes), strict=True):
        words = (*scene.instance.colours, scene.instance.emblem, scene.context)
        assert all(word in text for word in words)

    pairs = marked_pairs(20)
    assert all(held_out_pair(*(subject.class_name for subject in s.subjects)) for s in pairs)
    assert all(text.count(" and ") == 1 for text in captions_of(pairs))


def test_a_guidance_of_several_knots_is_linear_between_them_over_the_steps() -> None:
    assert scales_of(2.0, 3) == [2, 2, 2]
    assert scales_of(knots_of("2:4"), 5) == [2, 2.5, 3, 3.5, 4]
    assert scales_of(knots_of("2:4:2"), 5) == [2, 3, 4, 3, 2]
    assert scales_of(knots_of("2x3:4x2"), 5) == [2, 2, 2, 4, 4]
    assert min(scales_of([1, 1, 3], 5)) > 1  # diffusers would leave half of the batch out
    with pytest.raises(UserError, match="--values 1:high: want numbers"):
        knots_of("1:high")


def test_each_step_has_the_guidance_of_its_own() -> None:
    pipe = EqDiffPipeline.of(load_base(str(ASSETS / "toybox" / "base")))

    def picture(guidance: float | list[float]) -> torch.Tensor:
        return generate(pipe, ["a photo of a mug"], [0], steps=3, guidance=guidance)

    assert torch.equal(picture([3, 3]), picture(3.0))
    assert not torch.equal(picture([3, 1]), picture(3.0))
    assert not torch.equal(picture([3, 3, 4]), picture(3.0))  # the last step's alone


def test_a_picture_is_finished_from_the_step_asked_for_and_with_its_guidance() -> None:
    pipe = EqDiffPipeline.of(load_base(str(ASSETS / "toybox" / "base")))
    scene = marked_scenes(1)
    latents = torch.from_numpy(encode_scenes(pipe.vae, scene)[0]).float()
    truth = drawn(pipe.vae, scene)

    def away(first: int, guidance: list[float]) -> float:
        where = (captions_of(scene), [0], first, guidance, 10)
        return float((finished(pipe, latents, *where) - truth).square().mean())

    plain = [1.0] * 10
    assert away(9, plain) < away(6, plain) < away(0, plain)
    assert away(9, plain) < 0.01
    assert away(9, [*plain[:9], 9.0]) != away(9, plain)  # the last step's scale is the last
    assert away(9, [9.0, *plain[1:]]) == away(9, plain)  # and the first's is another step's


@pytest.mark.slow
def test_main_colours_of_drawn_subjects_are_mostly_their_own() -> None:
    subjects = [instance("dev", name, i) for name in CLASS_NAMES for i in range(5)]
    scenes = [Scene(subject, "in the snow", "photo", i) for i, subject in enumerate(subjects)]
    images = to_tensor(np.stack([draw(scene).image for scene in scenes]))

    colours, counts = main_colours(images)
    palette = tuple(PALETTE)
    own = torch.tensor([palette.index(subject.colours[0]) for subject in subjects])
    assert float((colours == own).float().mean()) > 0.4  # crude: 62 %, chance is 10 %
    assert counts.sum(1).tolist() == pytest.approx([1.0] * len(subjects))


def test_frechet_distance_is_nought_to_itself_and_that_of_moved_normals() -> None:
    a = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    wider = 3 * (a - a.mean(0)) + a.mean(0)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + 2) == pytest.approx(5 * 4, rel=1e-4)
    assert frechet(a, wider) == pytest.approx(4 * float(torch.cov(a.T).trace()), rel=1e-4)


class _Through:
    """A VAE that gives back what it gets."""

    device = torch.device("cpu")

    def encode(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=images))

    def decode(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=images)


def test_the_subjects_own_colours_are_nearer_than_anothers() -> None:
    facts = json.loads((ASSETS / "subjects" / "dotted_mug" / "instance.json").read_text())
    subject = instance(facts["table"], facts["class"], facts["index"])
    mugs = (instance("dev", "mug", i) for i in range(200))
    other = next(mug for mug in mugs if mug.colours[0] not in subject.colours)

    work = [job for job in jobs(1) if job.style == "photo"][:3]
    for place, job in enumerate(work):
        truth = truth_of(job, place, subject, _Through())
        another = truth_of(job, place, other, _Through())
        pictures = {"ours": truth.images[1], "base": another.images[1]}

        distances = colour_distances(truth, pictures)
        assert distances["drawn_colours"] < 8
        assert distances["ours_colours"] < 8
        assert distances["base_colours"] > 1.5 * distances["ours_colours"]


def test_the_truths_poses_are_of_each_job_alone_and_there_are_two_kinds() -> None:
    work = jobs()
    assert len(work) == 32
    assert {job.kind for job in work} == {"plain", "style"}

    mug = instance("dev", "mug", 10)
    first = truth_of(work[0], 0, mug, _Through())
    second = truth_of(work[0], 1, mug, _Through())
    assert first.images.shape[0] == customization.COUNT
    assert not torch.equal(first.images, second.images)
    assert first.patches().shape == (64,)
    assert 5 < int(first.patches().sum()) < 50


def test_the_gap_is_what_the_base_lacks_to_drawn_pictures() -> None:
    identity = {"ours": 0.7, "noun": 0.3, "base": 0.4, "drawn": 0.9}
    row: dict[str, Any] = {**identity}
    row |= {f"{name}_parts": value for name, value in identity.items()}
    row |= {"ours_colours": 6.0, "noun_colours": 8.0, "base_colours": 6.0, "drawn_colours": 4.0}
    for name in ("ours", "noun"):
        row |= {f"{name}_context": True, f"{name}_style": True, f"{name}_colour": True}
    row |= {"base_context": True, "base_style": False, "base_colour": False}

    rows = [row | {"kind": "plain"}, row | {"kind": "style"}]
    figures = summarize(rows, ("ours", "noun"))
    assert figures["plain/gap_closed_ours"] == pytest.approx(0.6)
    assert figures["style/gap_closed_noun"] == pytest.approx(-0.2)
    assert figures["plain/style_kept_ours"] == 1.0
    assert figures["plain/context_kept_noun"] == 0.0
    assert figures["plain/colours_ratio_ours"] == pytest.approx(1.5)
    assert figures["plain/colours_ratio_noun"] == pytest.approx(2.0)
    assert figures["plain/parts_drawn"] == pytest.approx(0.9)
