"""The app without a browser: what it takes in, what it may touch, its commands, its queue."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import bomb, plain
from helpers import ROOT, environment, refused, script
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app import commands, workplace
from app.workplace import require_photo, slug, take_bundled, take_photos
from eqdiff.errors import UserError
from eqdiff.settings.presets import parse
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.train import TrainConfig

EVIL = ["--output_dir=/etc", "-x", "$(touch gone)", "<b>'\"", "a\nb", "../../x", "`id`;&|"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    monkeypatch.chdir(tmp_path / "site")
    monkeypatch.delenv("EQDIFF_BASE", raising=False)


def line_of(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def picture(path: Path, size: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


# -- photos ----------------------------------------------------------------------------------------


def test_photos_are_copied_under_harmless_names_into_a_folder_of_their_own(tmp_path: Path) -> None:
    names = ["a <b>.jpg", "A--B.jpg", "masks.png", "ä.webp", "class.png"]
    given = [picture(tmp_path / str(number) / name) for number, name in enumerate(names)]
    folder, other = take_photos(given), take_photos(given)
    assert folder != other and folder.parent == workplace.PHOTOS
    kept = workplace.photo_names(folder)
    assert len(kept) == 5
    assert all(name.isascii() and "<" not in name and "/" not in name for name in kept)


def test_a_picture_that_a_browser_may_be_reading_is_never_written_over() -> None:
    """gradio writes what it is given as pixels in place, so the page gives it files."""
    pytest.importorskip("gradio", reason="no gradio: pip install -r requirements-app.txt")
    from app.looks import masked_photos
    from app.teach import brushed

    folder = take_bundled("dotted_mug")
    first = [Path(shown) for shown, _ in masked_photos(folder)]
    before = [path.stat().st_ino for path in first]
    again = [Path(shown) for shown, _ in masked_photos(folder)]
    assert len(set(first)) == 5 and again == first
    assert [path.stat().st_ino for path in again] == before
    brush = brushed(folder, workplace.photo_names(folder)[0])
    assert brush["background"] == brush["composite"] == str(first[0])
    cache = workplace.CACHE.absolute()  # from elsewhere gradio would copy them
    assert all(path.is_relative_to(cache) for path in first)
    assert not [path for path in cache.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "content", "culprit"),
    [
        ("note.txt", b"text", "no photo"),
        ("junk.jpg", b"no picture at all", "junk.jpg: not readable"),
        ("empty.png", b"", "empty.png: not readable"),
        ("bomb.png", plain(20_000, 20_000), "bomb.png: 20000 x 20000 pixels"),
        (
            "large.png",
            plain(14_000, 14_286),
            "large.png: 200 million pixels; 100 million pixels are the most",
        ),
        ("long.png", plain(60_000, 10), "long.png: 60000 x 10 pixels"),
        ("torn.png", bomb(64, 64), "torn.png"),
    ],
)
def test_what_is_no_photo_is_one_line_that_tells_no_path_and_nothing_is_kept(
    tmp_path: Path, name: str, content: bytes, culprit: str
) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / name).write_bytes(content)
    fine = picture(tmp_path / "up" / "fine.jpg")
    with pytest.raises(UserError) as caught:
        take_photos([fine, tmp_path / "up" / name])
    assert culprit in line_of(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert not workplace.OUTPUTS.exists()


def test_large_files_and_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="30 are the most"):
        take_photos([photo] * 31)
    with pytest.raises(UserError, match="no photos"):
        take_photos([])
    monkeypatch.setattr(workplace, "MOST_BYTES", 10)
    with pytest.raises(UserError, match="are the most"):
        require_photo(photo)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "", "..", "dotted_mug/..", "no"])
def test_no_bundled_subject_photo_or_concept_is_had_by_a_path(name: str, tmp_path: Path) -> None:
    outside = picture(tmp_path / "secret.png")
    folder = take_bundled("dotted_mug")
    (outside.parent / "concept.safetensors").write_bytes(b"x")
    painted = np.ones((4, 4), bool)
    deeds = [
        lambda: take_bundled(name),
        lambda: workplace.photo_and_mask(folder, name),
        lambda: workplace.change_mask(folder, name, painted, ~painted),
        lambda: workplace.change_mask(folder, f"{name}/secret.png", painted, ~painted),
        lambda: workplace.concept(name),
    ]
    before = sorted(tmp_path.rglob("*"))
    for deed in deeds:
        with pytest.raises(UserError) as caught:
            deed()
        line_of(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_gives_a_folders_name(text: str) -> None:
    name = slug(text, "subject")
    assert name.isascii() and 0 < len(name) <= 40 and "/" not in name and not name.startswith(".")


def test_a_kept_mask_has_the_photos_size_and_what_was_painted(tmp_path: Path) -> None:
    folder = take_photos([picture(tmp_path / "p.jpg", (1200, 800))])
    image, mask = workplace.photo_and_mask(folder, "p.jpg")
    assert image.size == (512, 341) and mask is None
    nothing = np.zeros((341, 512), bool)
    with pytest.raises(UserError, match="no mask is left"):
        workplace.change_mask(folder, "p.jpg", nothing, nothing)
    added, taken = nothing.copy(), nothing.copy()
    added[:170] = True
    taken[:, :256] = True
    path = workplace.change_mask(folder, "p.jpg", added, nothing)
    found = np.asarray(Image.open(path))
    assert found.shape == (800, 1200)
    assert found[:390].min() == 255 and found[410:].max() == 0
    workplace.change_mask(folder, "p.jpg", nothing, taken)
    after = np.asarray(Image.open(path))
    assert after[:, :590].max() == 0 and np.array_equal(after[:, 610:], found[:, 610:])
    assert np.asarray(workplace.photo_and_mask(folder, "p.jpg")[1])[:160, 260:].min() == 255


# -- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", EVIL)
def test_no_text_of_a_form_can_pass_for_a_flag_or_a_command(text: str) -> None:
    words = commands.draw_command(
        Path("outputs/a/concept.safetensors"),
        [f"{text} {{}}"],
        Path("outputs/a/drawn/1"),
        {"negative_prompt": text, "reference": text, "seed": 4, "height": None},
        "base",
    )
    config = parse(SampleConfig, words[1:])
    assert config.prompt == (f"{text} {{}}",) and config.negative_prompt == text
    assert config.reference == text and config.output_dir == "outputs/a/drawn/1"
    assert (config.seed, config.height, config.pretrained_model_name_or_path) == (4, None, "base")


@pytest.mark.parametrize(
    ("more", "culprit"),
    [
        ("--output_dir /etc", "output_dir"),
        ("--class_data_dir /etc", "class_data_dir"),
        ("--class_data_dir=/etc", "class_data_dir"),
        ("--validation_prompts /etc/passwd", "validation_prompts"),
        ("--resume_from_checkpoint /x", "resume_from_checkpoint"),
        ("--mask_dir /etc", "mask_dir"),
        ("--dino_model /x", "dino_model"),
        ("--pretrained_model_name_or_path x/y", "pretrained_model"),
        ("--overwrite", "overwrite"),
        ("--report_to wandb", "report_to"),
        ("--seed 'open", "further settings"),
        ("--no_such 3", "no_such"),
        ("--max_train_steps none", "max_train_steps"),
        ("stray words", "stray"),
    ],
)
def test_further_settings_open_no_door_to_the_disk(more: str, culprit: str) -> None:
    given = (Path("photos"), "mug", Path("outputs/mug"), {"max_train_steps": 3})
    with pytest.raises(UserError) as caught:
        commands.train_command(*given, more, None)
    assert culprit in line_of(caught.value)


def test_every_setting_that_names_a_file_is_closed_to_the_page() -> None:
    for name in TrainConfig.__dataclass_fields__:
        help_text = TrainConfig.__dataclass_fields__[name].metadata["help"]
        if any(word in help_text for word in ("folder", "file of", "prompt file", "hub id")):
            assert name in commands.CLOSED, name


def test_a_training_gets_what_the_form_says() -> None:
    given = {"preset": "toybox", "max_train_steps": 7, "learning_rate": 1e-3, "seed": 2}
    words = commands.train_command(
        Path("outputs/app/photos/ab"), " cat toy ", Path("outputs/x"), given, "--no-rra", None
    )
    config = parse(TrainConfig, words[1:])
    assert (config.class_word, config.output_dir, config.rra) == ("cat toy", "outputs/x", False)
    assert (config.preset, config.max_train_steps, config.seed) == ("toybox", 7, 2)
    again = parse(TrainConfig, commands.resumed(words)[1:])
    assert again.resume_from_checkpoint == "latest"
    for word in ("", "a\nb", "{}"):
        with pytest.raises(UserError):
            commands.train_command(Path("p"), word, Path("o"), given, "", None)


def test_a_comparison_draws_alike_and_ends_with_a_page() -> None:
    concepts = {name: Path(f"outputs/{name}/concept.safetensors") for name in ("a", "b")}
    lines = commands.compare_commands(concepts, ["a {}", "{}"], Path("outputs/app/c/1"), 2, None)
    scripts = [words[0] for words in lines]
    assert scripts == ["test_eqdiff.py"] * 2 + ["make_gallery.py", "eval_eqdiff.py"] + [
        "make_gallery.py"
    ]
    first, second = (parse(SampleConfig, words[1:]) for words in lines[:2])
    assert first.prompt == second.prompt and first.seed == second.seed
    assert first.output_dir != second.output_dir
    with pytest.raises(UserError, match="no concept"):
        commands.compare_commands({}, ["{}"], Path("c"), 1, None)


# -- its start -------------------------------------------------------------------------------------


def test_without_gradio_one_line_says_what_installs_it(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    line = refused(capsys, script("app/serve.py"), ["--port", port])
    assert "bash scripts/app.sh" in line


AT_EACH_LINE = """
import os, signal, sys, time
from app.serve import wait_for_the_end
time.sleep = lambda seconds: None

def interrupt_at(line: int) -> None:
    seen = 0
    def trace(frame, event, _):
        nonlocal seen
        if event == "line" and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            seen += 1
            if seen == line:
                os.kill(os.getpid(), signal.SIGINT)
        return trace
    sys.settrace(trace)
    wait_for_the_end()

for line in range(1, 60):
    print(line, flush=True)
    signal.alarm(60)  # ends the process if it hangs
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    interrupt_at(line)
    sys.settrace(None)
"""


def test_an_interrupt_at_whatever_line_of_the_wait_ends_the_server() -> None:
    """Such as one where Python's own waiting holds its lock."""
    command = [sys.executable, "-c", AT_EACH_LINE]
    ran = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, f"at line {ran.stdout.split()[-1]}: {ran.stderr}"


def test_the_curve_is_of_figures_before_its_first_row_too(tmp_path: Path) -> None:
    """A plot takes its axes from the first table; of an empty one of texts it made a list."""
    pytest.importorskip("gradio", reason="no gradio: pip install -r requirements-app.txt")
    from app.looks import curve_of

    assert set(map(str, curve_of(tmp_path).dtypes)) == {"float64"}
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2}\n{torn')
    assert curve_of(tmp_path).to_dict("list") == {"step": [1.0], "loss": [0.5]}
