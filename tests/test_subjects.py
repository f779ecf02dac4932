"""The bundled subjects and the toybox prompts that go with them."""

import json

import numpy as np
import pytest
from PIL import Image

from eqdiff.config import ASSETS, read_prompts
from toybox.captions import plain_caption
from toybox.contexts import CONTEXTS
from toybox.instances import instance
from toybox.make_subjects import PHOTO_CONTEXTS, SUBJECTS, write_bundled
from toybox.styles import STYLES

PROMPTS = {plain_caption("{}", context, style): (context, style) for context in CONTEXTS for style in STYLES}


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.int16)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_committed_pictures_are_what_the_command_draws(name, tmp_path):
    write_bundled(tmp_path / name)
    drawn = {path.relative_to(tmp_path): path for path in (tmp_path / name).rglob("*") if path.is_file()}
    kept = [path for path in (ASSETS / "subjects" / name).rglob("*") if path.is_file()]
    assert {path.relative_to(ASSETS / "subjects") for path in kept} == set(drawn)
    for file, path in drawn.items():
        if file.suffix == ".png":
            off = np.abs(pixels(path) - pixels(ASSETS / "subjects" / file))
            assert off.mean() < 4, file  # of 255: Pillow 10 smooths edges otherwise than 13
        else:
            assert path.read_text() == (ASSETS / "subjects" / file).read_text()


def test_the_folders_are_those_of_the_command():
    assert {path.name for path in (ASSETS / "subjects").iterdir() if path.is_dir()} == set(SUBJECTS)


def test_subjects_are_of_the_dev_table_and_unlike_each_other():
    notes = [json.loads((ASSETS / "subjects" / name / "instance.json").read_text()) for name in SUBJECTS]
    who = [instance(note["table"], note["class"], note["index"]) for note in notes]
    assert {note["table"] for note in notes} == {"dev"}
    assert len({x.class_name for x in who}) == len({x.pattern for x in who}) == len({x.emblem for x in who}) == len(who)


def test_toybox_prompts_are_in_the_words_that_the_base_knows():
    plain, style, both, preview = (
        [PROMPTS[prompt] for prompt in read_prompts(ASSETS / "prompts" / f"{name}.txt")]
        for name in ("toybox_plain", "toybox_style", "toybox", "toybox_preview")
    )
    assert {name for _, name in plain} == {"photo"}
    assert len({place for place, _ in plain}) == 8
    assert {name for _, name in style} == set(STYLES) - {"photo"}
    assert both == plain + style
    assert set(preview) <= set(both)
    assert len(set(preview) & set(plain)) == 2


def test_at_least_four_places_of_the_prompts_are_in_no_photo():
    for name in ("toybox_plain", "toybox_style"):
        places = {PROMPTS[prompt][0] for prompt in read_prompts(ASSETS / "prompts" / f"{name}.txt")}
        assert len(places - set(PHOTO_CONTEXTS)) >= 4
