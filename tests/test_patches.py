"""Metrics of patches, and counterfeits: what is drawn is as true as it is said to be."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from eqdiff.evaluation.metrics import load_clip, load_dino
from eqdiff.evaluation.patches import (
    background_text,
    masked_patches,
    part_scores,
    subject_regions,
    without_subject,
)
from eqdiff.evaluation.transforms import Transform, dino_transform
from eqdiff.settings.places import ASSETS
from studies.reproduce import measures, shown
from studies.reproduce.counterfeits import (
    ATTRIBUTES,
    changed,
    correlations,
    counterfeits,
    main,
    ranks,
    spearman,
    table,
)
from studies.reproduce.measures import Eyes, instance_in, photos_of, truth_scores
from studies.reproduce.store import Store, sealed
from studies.reproduce.tables import IMAGE, TEXT, metrics_in
from toybox.instances import CLASS_NAMES, instance
from toybox.world import STYLE_NAMES, Scene, draw

RESULTS = Path(__file__).resolve().parent.parent / "studies" / "results"
PLAIN = Transform(32, 32, (0.0,) * 3, (1.0,) * 3)


def a_mask(box: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def test_a_patch_is_subject_where_the_mask_covers_half_of_it() -> None:
    half = a_mask((0, 0, 32, 64))
    assert masked_patches(PLAIN, [half], 4).tolist() == [[True, False, True, False]]
    small = a_mask((40, 40, 44, 44))  # the patch that is covered most stands for it
    assert masked_patches(PLAIN, [small], 4).tolist() == [[False, False, False, True]]
    cut = Transform(64, 32, (0.0,) * 3, (1.0,) * 3)  # the judge sees the middle alone
    assert masked_patches(cut, [half], 4).tolist() == [[True, False, True, False]]
    edge = a_mask((0, 0, 10, 64))
    assert not masked_patches(cut, [edge], 4).any()


def test_a_part_counts_by_its_best_match_and_background_does_not_count() -> None:
    part, other, ground = torch.eye(3)
    photo = torch.stack([part, other, ground])[None]
    mask = torch.tensor([[True, True, False]])
    both = torch.stack([ground, other, part])
    one = torch.stack([part, part, ground])
    none = torch.stack([ground, ground, ground])
    scores = part_scores(torch.stack([both, one, none]), photo, mask)
    assert scores.tolist() == pytest.approx([1.0, 0.5, 0.0])
    two_photos = part_scores(both[None], torch.cat([photo, -photo]), mask.repeat(2, 1))
    assert two_photos.tolist() == pytest.approx([0.5])  # the second's best matches are 0


def test_what_matches_the_subject_better_than_its_photos_background_is_painted_over() -> None:
    part, _, ground = torch.eye(3)
    photo = torch.stack([part, ground])[None]
    mask = torch.tensor([[True, False]])
    drawn = torch.stack([part, ground, ground, part])[None]
    regions = subject_regions(drawn, photo, mask)
    assert regions.tolist() == [[True, False, False, True]]
    assert not subject_regions(drawn, photo, torch.tensor([[True, True]])).any()

    picture = Image.new("RGB", (64, 64), (200, 100, 0))
    picture.paste((0, 0, 255), (0, 0, 32, 32))
    picture.paste((0, 0, 255), (32, 32, 64, 64))
    (rest,) = without_subject(PLAIN, [picture], regions)
    assert np.unique(np.asarray(rest).reshape(-1, 3), axis=0).tolist() == [[200, 100, 0]]
    (edge,) = without_subject(dino_transform(224), [picture], torch.ones(1, 196).bool())
    assert edge.getpixel((0, 0)) == (0, 0, 255)  # what the judge does not see stays


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a photo of a {} on the beach", "a photo of on the beach"),
        ("an oil painting of a {}", "an oil painting of"),
        ("A {} in the snow", "in the snow"),
        ("a page of a comic book with a {} in a storm", "a page of a comic book with in a storm"),
        ("a blueprint of a {}, white lines", "a blueprint of white lines"),
        ("the <new1> at night", "at night"),
    ],
)
def test_a_prompt_without_its_subject_keeps_the_rest(prompt: str, text: str) -> None:
    assert background_text(prompt) == text


def test_ranks_share_ties_and_correlations_are_spearmans() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_a_counterfeit_differs_in_as_many_attributes_as_it_says() -> None:
    subject = instance("test", "mug", 0)

    def values(one: object) -> tuple:
        return (*one.colours[:2], one.pattern, one.emblem, one.shape)  # type: ignore[attr-defined]

    fakes = list(counterfeits(subject, 3))
    assert len(fakes) == 32
    for fake in fakes:
        drawn = fake.scene.instance
        same = sum(a == b for a, b in zip(values(subject), values(drawn), strict=True))
        assert fake.identity == pytest.approx(same / len(ATTRIBUTES))
        style = fake.scene.style == "photo" if fake.kind == "plain" else None
        right = [fake.scene.context in fake.prompt]
        if style is not None:
            assert fake.text == pytest.approx((right[0] + style) / 2)
    assert {fake.identity for fake in fakes} == {1.0, 0.8, 0.6, 0.4}
    assert {fake.text for fake in fakes} == {0.0, 0.5, 1.0}
    assert [fake.scene for fake in counterfeits(subject, 3)] == [fake.scene for fake in fakes]


def test_each_attribute_can_be_changed_alone() -> None:
    subject = instance("test", "car", 1)
    for name in ATTRIBUTES:
        other = changed(subject, [name], np.random.default_rng(0))
        assert other != subject and other.proportions == subject.proportions


def test_correlations_are_of_each_subject_and_then_their_mean() -> None:
    rows = [
        {"subject": s, "class": "mug", "kind": "plain", "identity": i, "text": t}
        | {"good": i + 0.01 * s, "bad": -i, "texty": t}
        for s in (0, 1)
        for i in (0.4, 0.6, 1.0)
        for t in (0.0, 1.0)
    ]
    found = {(r["metric"], r["prompts"], r["truth"]): r["mean"] for r in correlations(rows)}
    assert found["good", "all", "identity"] == pytest.approx(1)
    assert found["bad", "plain", "identity"] == pytest.approx(-1)
    assert found["texty", "all", "text"] == pytest.approx(1)
    assert found["texty", "all", "identity"] == pytest.approx(0)
    page = table(correlations(rows), len(rows))
    assert "| good | plain | +1.00 (+1.00 to +1.00) | +0.00" in page


@pytest.mark.slow
def test_on_counterfeits_dino_tells_identity_and_clip_tells_text(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The whole command on two subjects."""
    main(["--subjects", "2", "--json", str(tmp_path / "out.json")])
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["counterfeits"] == 64
    mean = {(r["metric"], r["prompts"], r["truth"]): r["mean"] for r in record["correlations"]}
    assert len({name for name, _, _ in mean}) >= 6
    assert mean["dino_i", "all", "identity"] > 0.5 > mean["clip_t", "all", "identity"]
    assert mean["clip_t", "all", "text"] > 0.8 > mean["dino_i", "all", "text"]
    assert "| max_cosine | style |" in capsys.readouterr().out


def test_metrics_are_ranked_on_the_pictures_of_cells_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = dict.fromkeys((*IMAGE, *TEXT), 0.5)
    for subject, sign in (("mug_0", 1), ("cat_0", -1)):
        pictures = [
            {"kind": "plain", "identity": i / 4, "context": float(i % 2), "style": 1.0}
            | seen
            | {"dino_i": i / 10, "clip_t": i % 2 / 10, "max_cosine": sign * i / 10}
            for i in range(4)
        ]
        row = {
            "key": f"{subject:0>16}",
            "subject": subject,
            "class_word": subject,
            "rows": pictures,
        }
        Store(tmp_path).save(sealed(row))
    Store(tmp_path).gather()

    main(["--cells", str(tmp_path), "--json", str(tmp_path / "out.json")])
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["subjects"], record["pictures"]) == (2, 8)
    found = {(r["metric"], r["prompts"], r["truth"]): r["mean"] for r in record["correlations"]}
    assert found["dino_i", "all", "identity"] == pytest.approx(1)
    assert found["clip_t", "all", "text"] == pytest.approx(1)
    assert found["max_cosine", "plain", "identity"] == pytest.approx(0)
    assert "over 8 pictures of cells" in capsys.readouterr().out
    assert "| dino_i | +1.00 (+1.00 to +1.00) | " in shown.agreement(record)

    with pytest.raises(SystemExit) as stopped:
        main(["--cells", str(tmp_path / "none")])
    assert stopped.value.code == 2
    assert "no cells of the toybox" in capsys.readouterr().err


def test_the_committed_figures_are_of_500_counterfeits_and_stand_in_the_page() -> None:
    record = json.loads((RESULTS / "counterfeits.json").read_text())
    assert record["counterfeits"] >= 500
    page = (RESULTS.parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    for line in table(record["correlations"], record["counterfeits"]).splitlines():
        if "| all |" in line:
            assert line in page


@pytest.mark.slow
def test_the_truth_of_drawn_pictures_is_what_was_drawn() -> None:
    prompt = "a photo of a {} on the beach"
    found: dict[str, list[list[float]]] = {}
    for name in CLASS_NAMES:
        subject = instance("test", name, 1)
        other = changed(subject, ["colour", "pattern", "emblem"], np.random.default_rng(0))
        scenes = [(subject, "on the beach", "photo"), (other, "in the snow", STYLE_NAMES[1])]
        drawn = [Image.fromarray(draw(Scene(*scene, 40_000)).image) for scene in scenes]
        for truth, values in truth_scores(drawn, [prompt] * 2, subject).items():
            found.setdefault(truth, []).append(values.tolist())

    for truth, (own, others) in {"identity": (1, 0.4), "context": (1, 0), "style": (1, 0)}.items():
        means = np.mean(found[truth], 0).tolist()
        assert means == pytest.approx([own, others], abs=0.15), truth  # the judge errs at times


def test_the_photos_themselves_score_highest() -> None:
    folder = ASSETS / "subjects" / "dotted_mug"
    toys = ASSETS / "toybox"
    eyes = Eyes(load_clip(str(toys / "clip")), load_dino(str(toys / "dino")))
    seen = photos_of(folder, eyes)
    own = Image.open(folder / "00.png").convert("RGB")
    other = Image.open(ASSETS / "subjects" / "striped_bird" / "00.png").convert("RGB")
    scores = eyes.scores([own, other], ["a photo of a {} on a wooden floor"] * 2, "mug", seen)
    for name in ("clip_i", "dino_i", "max_cosine", "max_cosine_clip", "clip_t"):
        assert scores[name][0] > scores[name][1], name
    assert all(values.shape == (2,) and values.isfinite().all() for values in scores.values())
    assert instance_in(folder) is not None


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "DINOv3ViT"])
def test_later_dinos_are_judges_too(kind: str, tmp_path: Path) -> None:
    """Class token and patches stand where they should, whatever registers are between."""
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=64)
    config = getattr(transformers, f"{kind}Config")(**sizes, patch_size=16, intermediate_size=64)
    model = getattr(transformers, f"{kind}Model")(config)
    model.save_pretrained(tmp_path)
    dino = load_dino(str(tmp_path))
    picture = Image.open(ASSETS / "subjects" / "dotted_mug" / "00.png").convert("RGB")
    patches = dino.patches([picture, picture])
    assert patches.shape == (2, 14 * 14, 32)
    assert dino.images([picture]).norm().item() == pytest.approx(1)
    tokens = dino.model(pixel_values=dino.transform([picture])).last_hidden_state
    assert torch.equal(patches[0], tokens[0, -196:])


def test_metrics_of_other_packages_are_taken_by_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def brightness(pictures: list, prompts: list, photos: list) -> list[float]:
        assert len(pictures) == len(prompts) == 2 and len(photos) == 1
        return [float(np.asarray(picture).mean()) for picture in pictures]

    entry = SimpleNamespace(name="brightness", load=lambda: brightness)
    asked: list[str] = []
    monkeypatch.setattr(measures, "entry_points", lambda group: asked.append(group) or [entry])
    pictures = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 200)]
    scores = measures.plugged(pictures, ["a {}"] * 2, pictures[:1])
    assert scores["brightness"].tolist() == [0.0, 200.0] and asked == ["eqdiff.metrics"]

    rows = [{"clip_t": 0.1, "dino_i": 0.1, "seed": 3, "brightness": 1.0, "kind": "plain"}]
    assert metrics_in([{"rows": rows}]) == ["clip_t", "dino_i", "brightness", "dino_i x text"]
