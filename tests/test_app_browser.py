"""The app in a real browser: a new user's whole way, files checked by value.

On the tiny base it is minutes; on the toybox it is the same way with marks, and long.
"""

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app_page import App, app, browser, choose, fill, job_says, opened, require_clean, shot, tab
from browsing import NARROW, Watched
from helpers import ROOT, run_test
from PIL import Image
from safetensors.torch import load_file

from app import kept, workplace
from app.jobs import Job

__all__ = ["app", "browser"]  # fixtures
pytestmark = pytest.mark.slow
CALLED = "yellow-mug"  # the folder of what is taught
TINY = "--resolution 64 --num_class_images 2 --class_inference_steps 2 --num_inference_steps 2"
TINY += " --reference_pool 4 --log_steps 1"


def paint(watched: Watched) -> None:
    """A stroke over the upper left of the photo under the brush."""
    canvas = watched.page.locator("#editor canvas").first
    canvas.scroll_into_view_if_needed()
    zoom = re.compile(r"^\d+ ?%$")  # it is told once the photo is there
    watched.page.locator("#editor").get_by_text(zoom).wait_for()
    watched.page.wait_for_timeout(1500)
    box = canvas.bounding_box()
    middle, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 - 120
    mouse = watched.page.mouse
    mouse.move(middle - 100, top)
    mouse.down()
    for step in range(12):
        mouse.move(middle - 100 + 4 * step, top + 2, steps=2)
    mouse.up()
    watched.page.wait_for_timeout(500)


def words_of(watched: Watched, element: str) -> list[str]:
    """The command line that a tab shows for its job."""
    lines = watched.page.locator(f"#{element} pre").all_inner_texts()
    return shlex.split(next(line for line in lines if line.startswith("python ")))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def words_in(subject: str) -> str:
    """The class word of a bundled subject."""
    return (ROOT / "assets" / "subjects" / subject / "class.txt").read_text().strip()


def teach(watched: Watched, app: App, steps: int, more: str) -> Path:
    """Chooses the mug, paints, trains, sees a preview, stops, goes on. Returns the run's folder."""
    page = watched.page
    choose(watched, "dotted_mug")
    paint(watched)
    shot(watched, "teach")
    page.locator("#keep").click()
    page.locator("#teach-said").get_by_text("kept: masks/00.png").wait_for()
    folders = (app.site / "outputs" / "app" / "photos").iterdir()
    photos = max(folders, key=lambda folder: (folder / "masks").stat().st_mtime)
    before = np.asarray(Image.open(ROOT / "assets/subjects/dotted_mug/masks/00.png"))
    after = np.asarray(Image.open(photos / "masks" / "00.png"))
    assert after.shape == before.shape and set(np.unique(after)) == {0, 255}
    grown = (after == 255) & (before < 128)
    assert 20 < grown.sum() < 0.2 * grown.size, "the stroke, and no more, is in the mask"
    assert np.array_equal(after[before >= 128], before[before >= 128])
    others = [digest(photos / "masks" / f"0{n}.png") for n in range(1, 5)]
    subject = ROOT / "assets/subjects/dotted_mug/masks"
    assert others == [digest(subject / f"0{n}.png") for n in range(1, 5)]

    fill(watched, "steps", str(steps))
    fill(watched, "every", "2")
    page.get_by_text("The rest: flags").click()
    fill(watched, "more", more)
    page.locator("#start").click()
    page.locator("#preview img").wait_for()
    shot(watched, "training")
    page.locator("#stop").click()
    job_says(watched, "teach-job", r"stopped by SIGINT after step \d+, which is saved")
    run = app.site / "outputs" / CALLED
    states = sorted(run.glob("checkpoints/*/state.json"))
    assert states and not (run / "concept.safetensors").exists()
    saved = int(states[-1].parent.name.removeprefix("step-"))
    assert 2 <= saved < steps

    page.locator("#again").click()
    job_says(watched, "teach-job", r"job 2, done")
    steps_logged = [json.loads(line)["step"] for line in (run / "log.jsonl").open()]
    assert steps_logged == sorted(set(steps_logged)) and steps_logged[-1] == steps
    assert load_file(run / "concept.safetensors")
    assert json.loads((run / "config.json").read_text())["class_word"] == words_in("dotted_mug")
    assert "--resume_from_checkpoint=latest" in words_of(watched, "teach-job")
    return run


def draw(watched: Watched, app: App, run: Path) -> list[str]:
    """Draws two prompts, uses a picture's settings again, downloads. Returns the command shown."""
    from playwright.sync_api import expect

    page = watched.page
    page.locator("#next").click()
    page.locator("#prompts").wait_for()
    expect(page.locator("#concept input")).to_have_value(CALLED)
    fill(watched, "prompts", "a photo of a {} in the snow\nan <b>oil</b> painting of a {}")
    fill(watched, "negative", "red")
    fill(watched, "draw-seed", "3")
    fill(watched, "draw-steps", "2")
    page.locator("#draw").click()
    job_says(watched, "draw-job", "job 3, done")
    page.locator("#drawn img").nth(1).wait_for()
    shot(watched, "draw")
    drawn = run / "drawn" / "1"
    rows = [json.loads(line) for line in (drawn / "manifest.jsonl").open()]
    assert [row["prompt"] for row in rows] == [
        "a photo of a {} in the snow",
        "an <b>oil</b> painting of a {}",
    ]
    assert {(row["run_seed"], row["steps"], row["negative_prompt"]) for row in rows} == {
        (3, 2, "red")
    }
    words = words_of(watched, "draw-job")
    assert page.locator("#draw-job b, #queue b").count() == 0
    page.locator("#drawn button img").first.click()
    page.locator("#row").get_by_text("run_seed").first.wait_for()
    page.locator("#use").click()
    page.get_by_text("its settings are in the form").wait_for()

    with page.expect_download() as download:
        page.locator("#download").click()
    assert digest(Path(download.value.path())) == digest(run / "concept.safetensors")
    return words


def compare(watched: Watched, app: App) -> None:
    page = watched.page
    tab(watched, "Compare")
    page.locator("#compared").get_by_label(CALLED, exact=True).check()
    page.locator("#compare").click()
    job_says(watched, "compare-job", "job 4, (done|failed)")
    frame = page.frame_locator("#compare-page iframe")
    frame.locator(".card img").first.wait_for()
    shot(watched, "compare")


def look_inside(watched: Watched, app: App) -> None:
    tab(watched, "Look inside")
    watched.page.locator("#inside-concept input").click()
    watched.page.get_by_role("option", name=CALLED, exact=True).click()
    watched.page.locator("#look").click()
    job_says(watched, "inside-job", "job 5, done")
    watched.page.locator("#inside-figures").get_by_text("gate_inside").wait_for()
    shot(watched, "inside")
    looks = app.site / "outputs" / "app" / "looks" / "1"
    assert {path.name for path in looks.iterdir()} == {
        "bands.png",
        "gate.json",
        "gate.png",
        "prompts.txt",
    }


def same_pictures(words: list[str], app: App, run: Path, patch: pytest.MonkeyPatch) -> None:
    """The command that the page shows draws the same, bit for bit."""
    patch.chdir(app.site)
    assert words[:2] == ["python", "test_eqdiff.py"]
    others = [word for word in words[2:] if not word.startswith("--output_dir")]
    run_test([*others, "--output_dir=again"])
    for path in sorted((run / "drawn" / "1" / "images").iterdir()):
        again = app.site / "again" / "images" / path.name
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(again)))


@pytest.mark.long
def test_a_new_users_whole_way(browser: Any, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tiny base: its pictures are noise, and no judge of pictures is here, which is told."""
    watched = opened(browser, app)
    run = teach(watched, app, 30, TINY)
    words = draw(watched, app, run)
    compare(watched, app)
    assert "error: " in watched.page.locator("#compare-job [role=alert]").inner_text()
    look_inside(watched, app)
    require_clean(watched, app)

    other = opened(browser, app, NARROW)  # a second browser, a phone: the same queue
    other.page.locator("#queue").get_by_text(f"into outputs/{CALLED}, again").wait_for()
    assert other.page.locator("#queue tbody tr").count() == 5
    for name in ("Teach", "Draw", "Compare", "Look inside"):
        tab(other, name)
        other.page.wait_for_timeout(500)
        assert other.width_of_all() <= NARROW[0], name
        shot(other, f"phone-{name.split()[0].lower()}")
    require_clean(other, app)
    watched.page.reload()
    watched.page.locator("#queue").get_by_text(f"into outputs/{CALLED}, again").wait_for()
    same_pictures(words, app, run, monkeypatch)
    assert {path.name for path in app.site.iterdir()} == {"outputs", "cache", "server.log", "again"}


@pytest.mark.long
def test_a_new_users_whole_way_on_the_toybox(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the bundled base, whose own judges mark the comparison."""
    served = App(tmp_path)
    try:
        watched = opened(browser, served)
        more = "--num_class_images 2 --num_inference_steps 2 --reference_pool 4 --log_steps 1"
        run = teach(watched, served, 10, more)
        words = draw(watched, served, run)
        compare(watched, served)
        watched.page.locator("#compare-marks").get_by_text("best").wait_for()
        require_clean(watched, served)
        same_pictures(words, served, run, monkeypatch)
    finally:
        served.close()


def test_a_subject_is_chosen_its_mask_painted_and_nothing_else_is_asked_for(
    browser: Any, app: App
) -> None:
    """The short brother: no training."""
    watched = opened(browser, app, NARROW)
    choose(watched, "striped_bird")
    assert watched.page.locator("#word textarea, #word input").first.input_value() == words_in(
        "striped_bird"
    )
    assert watched.page.locator("#sheet img").count() == 5
    assert watched.width_of_all() <= NARROW[0]
    watched.page.locator("#start").scroll_into_view_if_needed()
    fill(watched, "word", "<img src=x onerror=alert(1)>\u202e{}")
    watched.page.locator("#start").click()
    alert = watched.page.locator("#teach-said [role=alert]")
    alert.wait_for()
    assert "error: --class_word" in alert.inner_text() and "<img src=x" in alert.inner_text()
    assert watched.page.locator("#teach-said img").count() == 0
    tab(watched, "Draw")
    watched.page.locator("#draw").click()
    said = watched.page.locator("#draw-said [role=alert]")
    said.wait_for()
    assert said.inner_text().startswith("error: ")
    require_clean(watched, app)
    watched.page.close()


def test_after_a_restart_the_queue_is_there_and_what_was_taught_leads_to_draw(
    browser: Any, tiny_base: Path, tmp_path: Path
) -> None:
    """What a server before it left is made by hand: a training that is done, one that ran."""
    run = Path("outputs/mug")
    (tmp_path / run).mkdir(parents=True)
    (tmp_path / run / "concept.safetensors").write_bytes(b"none")
    jobs = [
        Job(4, "teach", "mug <b>into</b> it", [["train_eqdiff.py"]], run, run / "log", "done"),
        Job(5, "draw", "2 prompts", [["test_eqdiff.py", "-x"]], run, run / "log", "running"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        kept.keep(workplace.QUEUE, jobs)

    served = App(tmp_path, "--pretrained_model_name_or_path", str(tiny_base))
    try:
        watched = opened(browser, served, NARROW)
        page = watched.page
        rows = page.locator("#queue tbody tr")
        rows.nth(1).wait_for()
        assert [re.split(r"\s+", text)[:2] for text in rows.all_inner_texts()] == [
            ["5", "stopped"],
            ["4", "done"],
        ]
        job_says(watched, "teach-job", "mug <b>into</b> it")
        page.locator("#next").click()
        page.locator("#draw").wait_for()
        choice = page.locator("#concept input")
        page.wait_for_function("() => document.querySelector('#concept input').value === 'mug'")
        assert choice.is_visible()
        page.locator("#draw-said [role=alert]").get_by_text("error: ").wait_for()
        assert page.locator("#draw-said [role=alert]").count() == 1

        fill(watched, "job-number", "4")
        page.locator("#stop-job").click()
        page.locator("#queue-said").get_by_text("job 4 does not run").wait_for()
        fill(watched, "job-number", "5")
        page.locator("#rerun-job").click()
        page.locator("#queue tbody tr", has_text="2 prompts, again").get_by_text(
            "failed"
        ).wait_for()
        assert watched.width_of_all() <= NARROW[0]
        require_clean(watched, served)
        page.close()
    finally:
        served.close()
