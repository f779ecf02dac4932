"""What a new user reads: the last line, what results tell of the machine, captions, refusals."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from helpers import (
    ROOT,
    concept_of,
    environment,
    run_test,
    run_train,
    tiny_objective,
    training_words,
)
from PIL import Image, ImageFont

from eqdiff.concept.file import load_concept, save_concept
from eqdiff.data.sheets import CAPTION_LINES, _lines
from eqdiff.errors import UserError
from eqdiff.evaluation.samples import read_samples
from eqdiff.sampling import folder as sampling
from eqdiff.settings.evaluate import EvalConfig
from eqdiff.settings.places import ASSETS, BUNDLED_BASE, found_path, told_path
from eqdiff.settings.presets import preset_config
from eqdiff.settings.sample import Job
from eqdiff.training.likeness import Likeness
from eqdiff.training.results import closing_line, command

pytestmark = pytest.mark.usefixtures("own_caches")


# -- the command to run next -----------------------------------------------------------------------


# a newcomer adds a row: settings of a training, and the words that the next command needs
NEXT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "own base": ({"pretrained_model_name_or_path": "models/sd 1.4"},
                 ["--pretrained_model_name_or_path", "models/sd 1.4"]),
    "hub id": ({"pretrained_model_name_or_path": "a/b"},
               ["--pretrained_model_name_or_path", "a/b"]),
    "bundled base": ({}, []),
    "spaces and quotes": ({"output_dir": "my mug's; rm"}, []),
    "no photos in the concept": ({"embed_reference": False, "instance_data_dir": "p q"},
                                 ["--instance_data_dir", "p q"]),
    "with masks elsewhere": (
        {"embed_reference": False, "instance_data_dir": "p", "mask_dir": "m"},
        ["--instance_data_dir", "p", "--mask_dir", "m"],
    ),
    "no reference attention": ({"embed_reference": False, "rra": False}, []),
}  # fmt: skip


@pytest.mark.parametrize("kind", NEXT)
def test_the_last_line_names_a_command_that_runs_as_printed(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EQDIFF_BASE", raising=False)
    changes, words = NEXT[kind]
    given = {"output_dir": "outputs/mug", "pretrained_model_name_or_path": str(BUNDLED_BASE)}
    config = preset_config("toybox", class_word="mug", **{**given, **changes})
    for folder, script in ((ROOT, "scripts/test.sh"), (tmp_path, str(ROOT / "scripts/test.sh"))):
        monkeypatch.chdir(folder)
        assert shlex.split(command(config)) == ["bash", script, config.output_dir, *words]


def test_the_last_line_names_the_bundled_base_where_the_environment_names_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EQDIFF_BASE", "models/sd")
    config = preset_config(
        "toybox", output_dir="o", pretrained_model_name_or_path=str(BUNDLED_BASE)
    )
    assert str(BUNDLED_BASE) in command(config)


def test_the_last_line_points_to_pictures_that_are_there(tmp_path: Path) -> None:
    config = preset_config("paper", output_dir=str(tmp_path), pretrained_model_name_or_path="b")
    assert f"look at {tmp_path / 'masks.png'}, " in closing_line(config)
    (tmp_path / "preview").mkdir()
    (tmp_path / "preview" / "step-000001.png").touch()
    assert f"look at {tmp_path / 'preview'}, " in closing_line(config)


# -- what results tell of the machine --------------------------------------------------------------


def test_a_path_is_told_from_its_folder_or_the_home_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "anna"
    photos = home / "my photos"
    photos.mkdir(parents=True)
    inside = home / "eqdiff" / "outputs" / "mug"
    outside = tmp_path / "disk" / "mug"
    inside.mkdir(parents=True)
    outside.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)

    assert told_path(str(photos), inside) == "../../../my photos"
    assert told_path("my photos", inside) == "../../../my photos"
    assert told_path(str(photos), outside) == "~/my photos"
    assert told_path("CompVis/stable-diffusion-v1-4", outside) == "CompVis/stable-diffusion-v1-4"

    monkeypatch.chdir(tmp_path)
    for folder in (inside, outside):
        told = told_path(str(photos), folder)
        assert found_path(told, folder) == str(photos.resolve())
        assert "anna" not in told
    assert found_path("home/anna", outside) == "home/anna"  # an older file, told from here


def test_results_hold_no_absolute_path_and_no_hosts_name(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    """And the samples, wherever they lie, still know their photos, class word and base."""
    out = tmp_path / "out"
    given = {"max_train_steps": 1, "report_to": "tensorboard"}
    run_train(training_words(tiny_base, tiny_subject, out, **given))
    words = ["--pretrained_model_name_or_path", str(tiny_base), "--prompt", "a {}"]
    elsewhere = tmp_path / "else" / "where"
    run_test(["--concept", str(out), *words, "--output_dir", str(elsewhere)])
    run_test(["--concept", str(out), *words])

    texts = [*out.rglob("*.json*"), *elsewhere.rglob("*.json*"), *out.rglob("README.md")]
    assert len(texts) >= 4
    for path in texts:
        text = path.read_text()
        for secret in (tmp_path, tiny_base, tiny_subject, Path.home(), ROOT):
            assert f'"{secret}' not in text, path
    for path in out.rglob("*"):
        assert socket.gethostname() not in path.name

    for folder in (elsewhere, out / "samples"):
        samples = read_samples(folder, EvalConfig())
        assert samples.photos.samefile(tiny_subject)
        assert Path(samples.base).samefile(tiny_base)
        assert (samples.class_word, samples.step) == ("dog toy", 1)

    # the whole tree moves along, a folder of results alone does not
    shutil.move(out, tmp_path / "moved")
    assert read_samples(tmp_path / "moved" / "samples", EvalConfig()).class_word == "dog toy"
    row = json.loads((elsewhere / "manifest.jsonl").read_text())
    assert row["concept_file"] == os.path.join("..", "..", "out", "concept.safetensors")


def test_samples_drawn_elsewhere_know_which_checkpoint_drew_them(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_train(
        training_words(tiny_base, tiny_subject, out, max_train_steps=2, checkpointing_steps=1)
    )
    concept = out / "checkpoints" / "step-000001" / "concept.safetensors"
    words = ["--pretrained_model_name_or_path", str(tiny_base), "--prompt", "a {}"]
    run_test(["--concept", str(concept), *words, "--output_dir", str(tmp_path / "drawn")])
    assert read_samples(tmp_path / "drawn", EvalConfig()).step == 1


# -- pictures and refusals -------------------------------------------------------------------------


def test_a_caption_is_shown_whole_in_several_lines() -> None:
    font = ImageFont.load_default(11)
    text = "a watercolor painting of a cat toy in the snow"
    lines = _lines(text, font, 128)
    assert " ".join(lines) == text
    assert len(lines) > 1
    assert max(font.getlength(line) for line in lines) <= 128
    assert _lines("a\nb", font, 128) == ["a", "b"]
    assert len(_lines("word " * 99, font, 128)) == CAPTION_LINES
    assert _lines("w" * 99, font, 128)[0].endswith("..")
    assert _lines("", font, 128) == []


def test_a_long_caption_leaves_room_for_the_figures_below_it() -> None:
    """A description of the subject pushed the second figure off the preview."""
    font = ImageFont.load_default(11)
    figures = "like the photos 0.90, the nearest 0.95"
    lines = _lines(
        "a photo of a yellow mug with purple dots and a green ring, " * 3 + f"\n{figures}",
        font,
        128,
    )
    assert len(lines) == CAPTION_LINES
    assert " ".join(lines).endswith(figures)
    assert ".." in " ".join(lines)


def test_a_caption_is_cut_in_few_looks_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of a page took four seconds, a letter at a time."""
    font = ImageFont.load_default(11)
    measured = font.getlength
    looks: list[str] = []
    monkeypatch.setattr(font, "getlength", lambda text: looks.append(text) or measured(text))
    for text in ("w" * 5000, "word " * 2000):
        looks.clear()
        lines = _lines(text, font, 128)
        assert lines[-1].endswith("..") and measured(lines[-1]) <= 128
        assert measured(lines[-1][:-2] + "w..") > 128
        assert len(looks) < 100


@pytest.mark.parametrize(
    ("word", "captions"),
    [
        ("mug", ["a mug at sea", "a mug"]),
        ("yellow mug with purple dots", ["a yellow mug at sea", "a yellow mug"]),
    ],
)
def test_captions_name_the_class_word_in_the_subjects_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, captions: list[str]
) -> None:
    """A description is shortened: the whole of it left no room for place and style."""
    seen: list[str] = []
    monkeypatch.setattr(
        sampling, "image_grid", lambda images, columns, captions: seen.extend(captions) or images[0]
    )
    jobs = [Job(0, "a {} at sea", 0), Job(1, f"a <new1> {word}", 0)]
    sampling.make_folder(tmp_path)
    sampling.start_run(tmp_path)
    for job in jobs:
        sampling.save_image(tmp_path, job, Image.new("RGB", (8, 8)), {})
    sampling.finish(tmp_path, jobs, word)
    assert seen == captions


@pytest.mark.parametrize("step", [None, "step-000004"])
def test_a_finished_training_is_refused_before_the_heavy_imports(
    tmp_path: Path, tiny_subject: Path, step: str | None
) -> None:
    (tmp_path / "concept.safetensors").touch()
    if step:
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "checkpoints" / step / "state.json").touch()
    words = ["--instance_data_dir", str(tiny_subject), "--class_word", "mug"]
    code = (
        "import runpy, sys; sys.argv[1:] = sys.argv[2:]\n"
        "try: runpy.run_path('train_eqdiff.py', run_name='__main__')\n"
        "finally: print('torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    command_words = [sys.executable, "-c", code, "-", *words, "--output_dir", str(tmp_path)]
    done = subprocess.run(
        command_words, cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "holds a concept already; add --overwrite" in done.stderr
    assert (f"go on from its {step}" in done.stderr) == bool(step)
    assert done.stdout == "False False\n"


def test_a_concepts_folder_serves_as_its_file(
    tiny_base: Path, tiny_subject: Path, tmp_path: Path
) -> None:
    concept = concept_of(*tiny_objective(tiny_base, tiny_subject))
    save_concept(concept, tmp_path / "concept.safetensors")
    assert load_concept(tmp_path).hash == load_concept(tmp_path / "concept.safetensors").hash


# -- a word about quality --------------------------------------------------------------------------


def test_a_copy_of_a_photo_is_more_like_the_photos_than_another_picture() -> None:
    """By the toybox's DINO where its base is trained on, by colours in the mask elsewhere."""
    folder = ASSETS / "subjects"
    subject, other = sorted(path for path in folder.iterdir() if path.is_dir())[:2]
    photos = [Image.open(path).convert("RGB") for path in sorted(subject.glob("*.png"))]
    stranger = Image.open(sorted(other.glob("*.png"))[0]).convert("RGB")
    masks = torch.stack([
        tv.to_image(Image.open(path).convert("L").resize((16, 16))) / 255
        for path in sorted((subject / "masks").glob("*.png"))
    ])  # fmt: skip

    toy = preset_config("toybox", pretrained_model_name_or_path=str(BUNDLED_BASE))
    marks = Likeness(toy).marks([photos[0], stranger], photos, masks)
    assert "the nearest 1.00" in marks.captions[0]
    assert "1.00" not in marks.captions[1]
    assert "of the photos to each other" in marks.sentence

    own = preset_config("paper", pretrained_model_name_or_path="models/sd")
    marks = Likeness(own).marks([photos[0], stranger], photos, masks)
    same, different = (float(caption.split()[-2]) for caption in marks.captions)
    assert same < different
    assert all("colours" in text for text in (*marks.captions, marks.sentence))

    named = preset_config("paper", dino_model=str(ASSETS / "toybox" / "dino"))
    assert "DINO" in Likeness(named).marks(photos[:1], photos, masks).sentence
    with pytest.raises(UserError, match="dino"):
        Likeness(preset_config("paper", dino_model=str(ASSETS)))
