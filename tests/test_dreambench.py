"""DreamBench++'s layout: found, read, laid out as subjects with prompts of their own."""

from pathlib import Path

import pytest
from PIL import Image

from eqdiff.errors import UserError
from studies.reproduce import dreambench
from studies.reproduce.plan import Ground, made
from studies.reproduce.settings import ReproduceConfig
from studies.reproduce.subjects import Subject, class_word_of

GROUND = Ground("base", "b", "clip", "dino", "e", 512)
TEXTS = [f"A kitten number {n}, kitten {{}}" for n in range(9)]


def put(root: Path, place: str, lines: list[str]) -> None:
    """A picture and its captions."""
    image = root / "images" / f"{place}.jpg"
    captions = root / "captions" / f"{place}.txt"
    for file in (image, captions):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "green").save(image)
    captions.write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of two subjects and a style, below data/ as its archive has it."""
    put(tmp_path / "data", "live_subject/animal/00", ["Kitten", *TEXTS])
    put(tmp_path / "data", "object/07", ["coffee cup", "the coffee cup in snow", "a tall tree"])
    put(tmp_path / "data", "style/00", ["oil painting", "a house in oil painting"])
    return tmp_path


def test_its_folder_is_known_and_dreambooths_is_not(root: Path, tmp_path: Path) -> None:
    assert dreambench.root_of(root) == dreambench.root_of(root / "data") == root / "data"
    assert dreambench.root_of(root / "data" / "images") is None


def test_subjects_have_their_words_and_prompts_with_a_slot_and_styles_are_none(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kitten, cup = dreambench.find_pictures(root / "data")
    assert (kitten.name, kitten.word) == ("animal_00_kitten", "kitten")
    assert (cup.name, cup.word) == ("object_07_coffee_cup", "coffee cup")
    assert kitten.prompts[0] == ("A {} number 0, kitten ()", "plain")
    assert [kind for _, kind in kitten.prompts] == ["plain"] * 4 + ["style"] * 3 + ["plain"] * 2
    assert cup.prompts == (("the {} in snow", "plain"),)
    assert "1 prompts without 'coffee cup' are left out" in caplog.text


def test_laid_out_it_is_a_subject_like_any_other_whose_cells_draw_its_prompts(
    root: Path, tmp_path: Path
) -> None:
    pictures = dreambench.find_pictures(root / "data")
    folders = dreambench.laid_out(pictures, tmp_path / "work")
    stamps = [file.stat().st_mtime_ns for file in sorted((tmp_path / "work").rglob("*.*"))]
    dreambench.laid_out(pictures, tmp_path / "work")  # a cell of another process may be reading
    assert stamps == [file.stat().st_mtime_ns for file in sorted((tmp_path / "work").rglob("*.*"))]
    assert [class_word_of(folder) for folder in folders] == ["kitten", "coffee cup"]

    own = dreambench.prompts_in(folders[0])
    assert own == pictures[0].prompts and dreambench.prompts_in(tmp_path) == ()
    given = Subject("k", "kitten", folders[0], "d", own)
    for smoke, wanted in ((False, own), (True, (own[0], own[4]))):
        cells = made(ReproduceConfig(smoke=smoke), GROUND, [given]).cells.values()
        assert {frozenset(cell.prompts) for cell in cells} == {frozenset(wanted)}


@pytest.mark.parametrize(
    ("lines", "said"),
    [([], "class word"), (["cup"], "class word"), (["cup", "a tree"], "no prompt")],
)
def test_captions_that_cannot_be_used_are_named(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    put(tmp_path, "object/00", lines)
    with pytest.raises(UserError, match=rf"00\.txt: .*{said}"):
        dreambench.find_pictures(tmp_path)


def test_a_data_set_of_styles_alone_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "style/00", ["ink", "a house in ink"])
    with pytest.raises(UserError, match="no pictures of subjects"):
        dreambench.find_pictures(tmp_path)
