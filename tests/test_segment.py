"""Masks that are made: by tiny GroundingDINO and SAM 2 in the real layout, by colours, and as
training needs them."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, flags, refused, run_masks, run_train
from huggingface_hub import constants
from PIL import Image, ImageDraw
from transformers import GroundingDinoForObjectDetection, Sam2Model

from eqdiff.base.load import load_base
from eqdiff.concept.file import load_concept
from eqdiff.data.folder import find_mask
from eqdiff.data.subject import load_subject
from eqdiff.errors import UserError
from eqdiff.masks.make import SHEET, make_masks
from eqdiff.masks.salient import fill_holes, subject_masks
from eqdiff.masks.segment import best_box, load_segmenter
from eqdiff.ours import is_picture, save_picture
from eqdiff.sampling.run import with_photos
from eqdiff.settings.masks import MaskConfig
from eqdiff.settings.places import ASSETS
from eqdiff.settings.sample import SampleConfig

pytestmark = pytest.mark.slow  # most of them ask a network about whole photos
CPU = torch.device("cpu")
SMALL, LARGE = (
    (0.3, 0.4, 0.2, 0.2),
    (0.5, 0.5, 0.6, 0.8),
)  # middle, width, height [shares of the photo]


def write_detector(folder: Path) -> None:
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    words = "[PAD] [UNK] [CLS] [SEP] [MASK] . ? dog toy cat".split()
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    swin = SwinConfig(
        image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=10,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 160})
    GroundingDinoProcessor(images, BertTokenizer.from_pretrained(folder)).save_pretrained(folder)


def write_segmenter(folder: Path) -> None:
    import transformers
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Processor, Sam2VisionConfig

    # transformers 5.0 knows it by its older name only
    images = (
        getattr(transformers, "Sam2ImageProcessor", None) or transformers.Sam2ImageProcessorFast
    )
    hiera = Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[64, 64], blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4] * 4, global_attention_blocks=[2, 4],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
        num_pos_feats=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    prompts = dict(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4)
    decoder = dict(
        hidden_size=32,
        mlp_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        iou_head_hidden_dim=32,
    )
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    Sam2Model(config).save_pretrained(folder)
    sizes = [dict(height=side, width=side) for side in (64, 16)]
    Sam2Processor(images(size=sizes[0], mask_size=sizes[1])).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Flags and folders of a tiny random GroundingDINO and SAM 2."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_detector(folder / "detector")
        write_segmenter(folder / "segmenter")
    return {"detector_model": folder / "detector", "segmenter_model": folder / "segmenter"}


def force_boxes(monkeypatch: pytest.MonkeyPatch, boxes: list[tuple], scores: list[float]) -> None:
    """The detector runs and then answers with these boxes (middle x, y, width, height; shares of
    the photo)."""
    plain = GroundingDinoForObjectDetection.forward

    def forward(model: Any, **inputs: Any) -> SimpleNamespace:
        plain(model, **inputs)
        logits = torch.full((1, len(boxes), 16), -20.0)
        logits[0, :, 1] = torch.logit(torch.tensor(scores))
        return SimpleNamespace(logits=logits, pred_boxes=torch.tensor([boxes]))

    monkeypatch.setattr(GroundingDinoForObjectDetection, "forward", forward)


def force_masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """SAM 2 runs and then answers with three masks, of which the second, rated best, is its box.
    The list fills with the boxes it was given [pixels of its 64 x 64 input]."""
    seen: list[Any] = []
    plain = Sam2Model.forward

    def forward(model: Any, **inputs: Any) -> Any:
        outputs = plain(model, **inputs)
        box = inputs["input_boxes"][0, 0]
        seen.append(box.tolist())
        left, top, right, bottom = (box / 4).round().int().tolist()
        masks = torch.full((1, 1, 3, 16, 16), -10.0)
        masks[0, 0, 0] = 10
        masks[0, 0, 1, top:bottom, left:right] = 10
        assert outputs.pred_masks.shape == masks.shape
        outputs.pred_masks, outputs.iou_scores = masks, torch.tensor([[[0.1, 0.9, 0.3]]])
        return outputs

    monkeypatch.setattr(Sam2Model, "forward", forward)
    return seen


def photos(
    folder: Path, *, names: tuple[str, ...] = ("a", "b"), size: tuple[int, int] = (120, 90)
) -> Path:
    """Photos of a red disc on blues and greens, without masks."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        image = Image.new("RGB", size, (20, 60 + 40 * number, 200))
        ImageDraw.Draw(image).ellipse((40, 25, 80, 65), fill=(200, 30, 30))
        image.save(folder / f"{name}.png")
    return folder


def words(folder: Path, **given: Any) -> list[str]:
    return flags({"instance_data_dir": folder, "class_word": "dog toy", **given})


def run(folder: Path, *more: str, **given: Any) -> None:
    run_masks([*words(folder, **given), *more])


def test_the_better_of_two_boxes_reaches_sam_2_and_its_mask_comes_back_at_the_photos_size(
    models, tmp_path, monkeypatch, capsys
):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "p").mkdir()
    Image.effect_noise((90, 240), 50).convert("RGB").save(
        tmp_path / "p" / "a.jpg", exif=exif
    )  # displayed 240 x 90
    force_boxes(monkeypatch, [SMALL, LARGE], [0.6, 0.5])
    seen = force_masks(monkeypatch)
    run(tmp_path / "p", mask_maker="models", **models)
    assert "1 mask in" in capsys.readouterr().out
    middle_x, middle_y, width, height = LARGE
    expected = [
        middle_x - width / 2,
        middle_y - height / 2,
        middle_x + width / 2,
        middle_y + height / 2,
    ]
    assert seen == [pytest.approx([64 * share for share in expected], abs=1e-3)]
    mask = Image.open(tmp_path / "p" / "masks" / "a.png")
    assert mask.size == (240, 90) and mask.mode == "L"
    assert mask.getbbox() == pytest.approx([round(240 * 0.2), 9, round(240 * 0.8), 81], abs=6)
    assert set(np.unique(mask)) == {0, 255}


def test_random_models_run_without_force_and_nothing_found_is_an_empty_mask(models, monkeypatch):
    both = load_segmenter(*map(str, models.values()))
    photo = Image.effect_noise((150, 100), 80).convert("RGB")
    monkeypatch.setattr("eqdiff.masks.segment.SCORE", 0.0)
    left, top, right, bottom = both.box(photo, "Dog toy.")
    assert 0 <= left < right <= 150 and 0 <= top < bottom <= 100
    assert both(photo, "dog toy").shape == (100, 150)
    monkeypatch.setattr("eqdiff.masks.segment.SCORE", 1.0)
    assert not both(photo, "dog toy").any() and both(photo, "dog toy").shape == (100, 150)


def test_the_best_box_has_score_times_area_but_not_a_low_score():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 40, 40], [-5, 0, 110, 120]])
    assert best_box(torch.tensor([0.9, 0.8, 0.3]), boxes, (100, 100)) == [0, 0, 40, 40]
    assert best_box(torch.tensor([0.9, 0.8, 0.6]), boxes, (100, 100)) == [0, 0, 100, 100]
    assert best_box(torch.tensor([0.9, 0.05, 0.3]), boxes, (100, 100)) == [0, 0, 10, 10]
    assert best_box(torch.zeros(0), torch.zeros(0, 4), (100, 100)) is None


def test_holes_are_filled_unless_they_are_large():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    mask[12:14, 12:14] = mask[20:40, 20:40] = False
    small = mask.copy()
    small[12:14, 12:14] = True
    assert (fill_holes(mask) == small).all()
    mask[13, 14:] = False  # open to the outside: no hole
    assert fill_holes(mask)[12, 12] == np.False_
    full = np.ones((5, 5), bool)
    assert (fill_holes(full) == full).all() and not fill_holes(~full).any()


@pytest.mark.parametrize(("size", "share"), [(0.05, "0.2 %"), (1.0, "100.0 %")])
def test_a_mask_of_nearly_nothing_or_all_is_refused_and_its_photo_named(
    models, tmp_path, monkeypatch, capsys, size, share
):
    folder = photos(tmp_path / "p")
    force_boxes(monkeypatch, [(0.5, 0.5, size, size)], [0.9])
    monkeypatch.setattr(
        "eqdiff.masks.segment.Segmenter.__call__",
        lambda both, photo, word: (
            np.arange(90 * 120).reshape(90, 120) < (25 if size < 1 else 10**6)
        ),
    )
    line = refused(capsys, run_masks, words(folder, mask_maker="models", **models))
    assert f"a.png ({share})" in line and f"b.png ({share})" in line and "masks/NAME.png" in line
    assert not list((folder / "masks").glob("*.png"))
    assert (folder / "masks" / SHEET).is_file()


def test_alpha_and_the_users_masks_are_kept_and_only_asked_for_are_they_replaced(tmp_path, capsys):
    folder = photos(tmp_path / "p", names=("a", "b", "c"))
    cut_out = Image.open(folder / "a.png")
    cut_out.putalpha(Image.new("L", cut_out.size, 255))
    cut_out.paste((0, 0, 0, 0), (0, 0, 30, 90))
    cut_out.save(folder / "a.png")
    (folder / "masks").mkdir()
    own = Image.new("L", (120, 90))
    own.paste(255, (35, 20, 85, 70))
    own.save(folder / "masks" / "b.png")
    before = (folder / "masks" / "b.png").read_bytes()
    run(folder, mask_maker="colours")
    assert "1 mask in" in capsys.readouterr().out
    assert (folder / "masks" / "b.png").read_bytes() == before
    assert sorted(path.name for path in (folder / "masks").iterdir()) == [
        "b.png",
        "c.png",
        "overlay",
    ]
    run(folder, mask_maker="colours")
    assert "nothing to do" in capsys.readouterr().out
    run(folder, "--overwrite", mask_maker="colours")
    assert (folder / "masks" / "b.png").read_bytes() != before
    assert not (folder / "masks" / "a.png").exists()


def test_the_sheet_is_no_mask_of_any_photo(tmp_path):
    folder = photos(tmp_path / "p", names=("overlay", "a"))
    run(folder, mask_maker="colours")
    assert find_mask(folder / "masks", Path("overlay.jpg")).name == "overlay.png"
    assert Image.open(folder / "masks" / SHEET).width > 2 * 120
    assert load_subject(folder, class_word="disc", resolution=32).masks.mean() < 0.5


def test_a_sheet_that_is_not_ours_stays_without_overwrite(tmp_path, capsys):
    folder = photos(tmp_path / "p")
    sheet = folder / "masks" / SHEET
    sheet.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(sheet, comment="by hand")
    before = sheet.read_bytes()

    line = refused(capsys, run_masks, words(folder, mask_maker="colours"))
    assert f"{sheet}: not written by EqDiff" in line and "--overwrite" in line
    assert sheet.read_bytes() == before and not list((folder / "masks").glob("*.png"))

    run(folder, "--overwrite", mask_maker="colours")
    assert is_picture(sheet)
    (folder / "masks" / "b.png").unlink()
    run(folder, mask_maker="colours")  # the sheet is ours now
    assert is_picture(folder / "masks" / "b.png")


def test_a_mask_that_is_not_ours_stays_where_it_does_not_count_as_there(tmp_path):
    folder = photos(tmp_path / "p")
    mask = tmp_path / "masks" / "b.png"
    mask.parent.mkdir()
    Image.new("L", (120, 90), 255).save(mask)
    before = mask.read_bytes()
    with pytest.raises(UserError, match=f"{mask}: not written by EqDiff"):
        make_masks(folder, MaskConfig(mask_maker="colours"), mask.parent, word="disc", given=())
    assert mask.read_bytes() == before and list(mask.parent.iterdir()) == [mask]


@pytest.mark.parametrize("name", ["overlay", "overlay/overlay.jpg", "a.png", "dead link"])
def test_what_is_in_the_way_is_named_before_a_mask_is_made(tmp_path, capsys, name):
    folder = photos(tmp_path / "p")
    path = folder / "masks" / ("b.png" if name == "dead link" else name)
    path.parent.mkdir(parents=True)
    if name == "overlay":
        path.write_text("mine")
    elif name == "dead link":
        path.symlink_to("nowhere.png")
    else:
        path.mkdir()
    line = refused(capsys, run_masks, [*words(folder, mask_maker="colours"), "--overwrite"])
    assert f"{path}: in the way" in line
    assert not (folder / "masks" / "a.png").is_file()


def test_offline_the_network_that_comes_along_takes_over_with_a_warning_that_says_so(
    tmp_path, monkeypatch, caplog, capsys
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert constants.HF_HUB_OFFLINE
    folder = photos(tmp_path / "p")
    with caplog.at_level(logging.WARNING):
        run(folder)
    (line,) = caplog.messages
    assert (
        "U2-Net-p" in line
        and "not in the cache" in line
        and "--detector_model" in line
        and "\n" not in line
    )
    for name in "ab":
        found = np.asarray(Image.open(folder / "masks" / f"{name}.png")) > 0
        disc = Image.new("L", (120, 90))
        ImageDraw.Draw(disc).ellipse((40, 25, 80, 65), fill=1)
        truth = np.asarray(disc) > 0
        assert iou(found, truth) > 0.9
    shutil.rmtree(folder / "masks")
    assert "not in the cache" in refused(capsys, run_masks, words(folder, mask_maker="models"))


def test_a_hub_that_does_not_answer_is_asked_once_and_the_cache_first(
    models, tmp_path, monkeypatch, caplog
):
    import huggingface_hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[str] = []

    def fetch(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only and name == "some/segmenter":
            return str(models["segmenter_model"])
        assert local_files_only, "nothing is to be fetched after no answer"
        raise FileNotFoundError(name)

    def ask(api: Any, name: str, *, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    run(photos(tmp_path / "p"), detector_model="some/detector", segmenter_model="some/segmenter")
    assert asked == ["some/detector"] and "no route" in caplog.text
    asked.clear()
    run(photos(tmp_path / "q"), detector_model=models["detector_model"],
    segmenter_model="some/segmenter",
        mask_maker="colours")  # fmt: skip
    both = load_segmenter(str(models["detector_model"]), "some/segmenter")
    assert asked == [] and isinstance(both.segmenter, Sam2Model)


def test_a_folder_without_such_a_model_is_one_line(models, tmp_path, capsys):
    folder = photos(tmp_path / "p")
    wrong = models["segmenter_model"]
    swapped = words(folder, detector_model=wrong, segmenter_model=wrong)
    line = refused(capsys, run_masks, swapped)
    assert "--detector_model" in line and "it holds a sam2" in line
    assert "no such folder" in refused(
        capsys, run_masks, words(folder, segmenter_model="./nowhere")
    )
    assert "SUBJECT_DIR" in _without_folder(capsys)
    assert not (folder / "masks").exists()


def _without_folder(capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit):
        run_masks([])
    return capsys.readouterr().err


def _training(base: Path, subject: Path, out: Path, **more: Any) -> list[str]:
    given = {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": subject,
        "class_word": "dog toy",
    }
    words = flags(
        {**TINY, **given, "output_dir": out, "max_train_steps": 1, "reference_pool": 1, **more}
    )
    return [*words, "--no-with_prior_preservation"]


def test_training_makes_the_masks_that_are_missing_and_uses_them(
    tiny_base, tiny_subject, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "s"
    shutil.copytree(tiny_subject, folder)
    (folder / "masks" / "00.png").rename(tmp_path / "truth.png")
    kept = {path.name: path.read_bytes() for path in (folder / "masks").iterdir()}
    run_train(_training(tiny_base, folder, tmp_path / "out", masking="none"))
    assert "1 masks made by U2-Net-p" in caplog.text
    made = tmp_path / "out" / "masks"
    assert sorted(path.name for path in made.iterdir()) == ["00.png", "overlay"]
    assert {path.name: path.read_bytes() for path in (folder / "masks").iterdir()} == kept
    found, truth = (
        np.asarray(Image.open(path)) > 0 for path in (made / "00.png", tmp_path / "truth.png")
    )
    assert iou(found, truth) > 0.8
    subject = load_subject(folder, class_word="dog toy", resolution=64, made_masks=made)
    assert subject.masks.flatten(1).mean(1).max() < 0.5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_masks"] is True
    # a concept that carries no photos finds the made masks beside it again
    concept = load_concept(tmp_path / "out" / "concept.safetensors")
    again = with_photos(
        SampleConfig(instance_data_dir=str(folder)), concept, made, load_base(str(tiny_base)), CPU
    )
    assert torch.equal(again.references.masks, concept.references.masks)


def test_no_auto_masks_is_the_whole_picture_and_a_resumed_training_keeps_its_masks(
    tiny_base, tiny_subject, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    folder, out = tmp_path / "s", tmp_path / "out"
    shutil.copytree(tiny_subject, folder)
    shutil.rmtree(folder / "masks")
    run_train([*_training(tiny_base, folder, out), "--no-auto_masks"])
    assert "background is learned" in caplog.text and not (out / "masks").exists()
    other = Image.new("L", (96, 72))
    other.paste(255, (20, 20, 60, 60))
    (out / "masks").mkdir()
    save_picture(other, out / "masks" / "00.png")  # left by another training
    stale = (out / "masks" / "00.png").read_bytes()
    words = _training(tiny_base, folder, out, checkpointing_steps=1)
    run_train([*words, "--overwrite"])
    assert (out / "masks" / "00.png").read_bytes() != stale
    save_picture(other, out / "masks" / "00.png")
    run_train([*words, "--resume_from_checkpoint", "latest"])
    assert (out / "masks" / "00.png").read_bytes() == stale


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return (found & truth).sum() / (found | truth).sum()


def test_a_bundled_subject_is_found_in_all_its_places():
    folder = ASSETS / "subjects" / "dotted_mug"
    names = sorted(path.stem for path in folder.glob("*.png"))[:3]
    pictures = [np.asarray(Image.open(folder / f"{name}.png").convert("RGB")) for name in names]
    truths = [np.asarray(Image.open(folder / "masks" / f"{name}.png")) > 0 for name in names]
    assert min(map(iou, subject_masks(pictures), truths)) > 0.85


def test_what_all_photos_share_is_the_subject_and_a_given_mask_says_which_of_two_things():
    disc = np.zeros((90, 120), np.uint8)
    disc[25:65, 15:55] = 1
    other = disc[:, ::-1]
    pictures = []
    grounds = (60, 90, 40), (40, 60, 150), (120,) * 3
    things = (240, 220, 40), (200, 40, 200), (30, 200, 220)
    for ground, thing in zip(grounds, things, strict=True):
        picture = np.full((90, 120, 3), ground, np.uint8)
        picture[disc > 0], picture[other > 0] = (220, 40, 30), thing
        pictures.append(picture)
    # the other thing has another colour in each photo
    assert all(iou(found, disc > 0) > 0.8 for found in subject_masks(pictures))
    for picture in pictures:
        picture[other > 0] = (240, 220, 40)
    assert not any(iou(found, disc > 0) > 0.8 for found in subject_masks(pictures))
    for wanted in (disc > 0, other > 0):
        assert all(
            iou(found, wanted) > 0.8 for found in subject_masks(pictures, [wanted, None, None])
        )


@pytest.mark.parametrize("level", [0, 128])
def test_photos_with_nothing_in_them_do_not_break_it(level):
    masks = subject_masks(
        [np.full((40, 300, 3), level, np.uint8), np.full((1, 1, 3), 255, np.uint8)]
    )
    assert [mask.shape for mask in masks] == [(40, 300), (1, 1)]
