"""The bundled subjects and the toybox prompts that go with them."""

import json
import shutil
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eqdiff.settings.places import ASSETS, is_bundled_subject
from eqdiff.settings.prompts import read_prompts
from toybox.captions import plain_caption
from toybox.contexts import CONTEXTS
from toybox.instances import instance
from toybox.make_subjects import PHOTO_CONTEXTS, SUBJECTS, write_bundled
from toybox.styles import STYLES

# every canonical prompt of the toybox -> its place and style
PROMPTS = {plain_caption("{}", *pair): pair for pair in product(CONTEXTS, STYLES)}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.int16)


def files_in(folder: Path) -> dict[Path, Path]:
    """The files of a folder by their path in it."""
    return {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_committed_pictures_are_what_the_command_draws(name: str, tmp_path: Path) -> None:
    write_bundled(tmp_path / name)
    drawn = files_in(tmp_path / name)
    committed = files_in(ASSETS / "subjects" / name)
    assert set(committed) == set(drawn)

    for file, path in drawn.items():
        if file.suffix == ".png":
            off = np.abs(pixels(path) - pixels(committed[file]))
            assert off.mean() < 4, file  # of 255: Pillow 10 smooths edges otherwise than 13
        else:
            assert path.read_text() == committed[file].read_text()


def test_the_folders_are_those_of_the_command() -> None:
    assert {path.name for path in (ASSETS / "subjects").iterdir() if path.is_dir()} == set(SUBJECTS)


def test_subjects_are_of_the_dev_table_and_unlike_each_other() -> None:
    files = [ASSETS / "subjects" / name / "instance.json" for name in SUBJECTS]
    notes = [json.loads(file.read_text()) for file in files]
    assert {note["table"] for note in notes} == {"dev"}

    subjects = [instance(note["table"], note["class"], note["index"]) for note in notes]
    for attribute in ("class_name", "pattern", "emblem"):
        assert len({getattr(subject, attribute) for subject in subjects}) == len(subjects)


def pairs_of(name: str) -> list[tuple[str, str]]:
    """Place and style of each prompt of a file, all of them canonical."""
    return [PROMPTS[prompt] for prompt in read_prompts(ASSETS / "prompts" / f"{name}.txt")]


def test_toybox_prompts_are_in_the_words_that_the_base_knows() -> None:
    plain = pairs_of("toybox_plain")
    style = pairs_of("toybox_style")
    preview = pairs_of("toybox_preview")
    assert {name for _, name in plain} == {"photo"}
    assert len({place for place, _ in plain}) == 8
    assert {name for _, name in style} == set(STYLES) - {"photo"}

    wide = pairs_of("toybox_wide_plain"), pairs_of("toybox_wide_style")
    assert {*wide[0]} == {(place, "photo") for place in CONTEXTS}
    assert Counter(name for _, name in wide[1]) == dict.fromkeys(set(STYLES) - {"photo"}, 2)
    assert len({place for place, _ in wide[1]}) == len(CONTEXTS) and len({*wide[1]}) == 14

    assert pairs_of("toybox") == plain + style
    assert set(preview) <= {*plain, *style}
    assert len(set(preview) & set(plain)) == 2


def test_at_least_four_places_of_the_prompts_are_in_no_photo() -> None:
    for name in ("toybox_plain", "toybox_style"):
        places = {place for place, _ in pairs_of(name)}
        assert len(places - set(PHOTO_CONTEXTS)) >= 4


def test_a_copy_of_a_bundled_subject_is_known_and_nobody_elses_photo_passes_for_one(
    tmp_path: Path,
) -> None:
    mug = ASSETS / "subjects" / "dotted_mug"
    copy = Path(shutil.copytree(mug, tmp_path / "copy"))
    assert is_bundled_subject(mug) and is_bundled_subject(copy)
    Image.new("L", (128, 128), 255).save(copy / "masks" / "00.png")  # painted
    assert is_bundled_subject(copy)
    shutil.copy(copy / "00.png", copy / "mine.png")
    assert not is_bundled_subject(copy)
    (copy / "mine.png").unlink()
    Image.new("RGB", (128, 128)).save(copy / "01.png")
    assert not is_bundled_subject(copy)
    (tmp_path / "empty").mkdir()
    assert not is_bundled_subject(tmp_path / "empty") and not is_bundled_subject(tmp_path / "gone")
