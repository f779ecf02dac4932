"""The gallery: what it shows, that nothing in it is run or tells of the machine, what stays."""

import base64
import hashlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import refused, script
from PIL import Image

from eqdiff.gallery.command import drawing_command, training_command
from eqdiff.gallery.found import find_run
from eqdiff.gallery.page import is_ours, style_and_place, write_beside
from eqdiff.ours import SOFTWARE, is_picture, save_picture
from eqdiff.sampling.options import option_facts, options_of
from eqdiff.settings.options import to_json
from eqdiff.settings.presets import parse, preset_config
from eqdiff.settings.sample import SampleConfig, jobs_of
from eqdiff.settings.train import TrainConfig, told

run_gallery = script("make_gallery.py")
EVIL = "<img src=x onerror=alert(1)>'\"</script>"
WORD = "dog </title><b>toy"
GPS = 0x8825


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EQDIFF_BASE", raising=False)


def located(image: Image.Image) -> Image.Exif:
    """EXIF data that tells where and with what a photo was made."""
    exif = image.getexif()
    exif[0x010F] = "CameraOfSomebody"
    exif.get_ifd(GPS)[2] = (52.0, 31.0, 12.0)
    return exif


def make_photos(folder: Path) -> Path:
    (folder / "masks").mkdir(parents=True)
    for number in range(3):
        image = Image.new("RGB", (300, 200), (200, 40 * number, 90))
        image.save(folder / f"{number} <i>.jpg", exif=located(image))
        mask = Image.new("L", (300, 200))
        mask.paste(255, (100, 50, 200, 150))
        if number:
            mask.save(folder / "masks" / f"{number} <i>.png")
    return folder


def config_of(folder: Path, photos: Path, **changes: Any) -> TrainConfig:
    given = {"class_word": WORD, "instance_data_dir": str(photos), "output_dir": str(folder)}
    given |= {"pretrained_model_name_or_path": "models/sd", "max_train_steps": 7, "rra": False}
    return preset_config("paper", **{**given, "learning_rate": 1e-3, **changes})


def row(number: int, prompt: str, **changes: Any) -> dict[str, Any]:
    """A line of a manifest as test_eqdiff.py writes it."""
    facts = {"file": f"images/{number:04d}-x-0.png", "prompt": prompt, "seed": 5, "run_seed": 3}
    facts |= {"number": number % 2, "reference": None, "num_references": 1, "rra": True}
    facts |= {"attention_window": [0.0, 1.0], "reference_for": "both", "steps": 9}
    facts |= {"guidance": 2.5, "scheduler": "ddim", "negative_prompt": "red", "height": 96}
    facts |= {"width": 64, "concept": "abc", "concept_file": "../concept.safetensors"}
    return {**facts, **changes, "written_by": SOFTWARE}


def make_run(folder: Path, photos: Path, prompts: tuple[str, ...], **changes: Any) -> Path:
    """What a training and a drawing leave, made by hand."""
    (folder / "preview").mkdir(parents=True)
    (folder / "samples" / "images").mkdir(parents=True)
    config = told(config_of(folder, photos, **changes), folder)
    (folder / "config.json").write_text(to_json(config), encoding="utf-8")
    lines = [{"step": s, "loss": 1 / s, "diffusion": 1, "lr": 1, "seconds": 1} for s in (1, 2, 4)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{torn")
    (folder / "concept.safetensors").touch()
    for step in (2, 4):
        grid = Image.new("RGB", (64, 64), (step, 0, 0))
        save_picture(grid, folder / "preview" / f"step-{step:06d}.png")

    rows = [row(2 * i + n, p) for i, p in enumerate(prompts) for n in range(2)]
    for number, each in enumerate(rows):
        picture = Image.new("RGB", (64, 96), (0, 10 * number, 250))
        save_picture(picture, folder / "samples" / each["file"])
    manifest = "".join(json.dumps(each) + "\n" for each in rows)
    (folder / "samples" / "manifest.jsonl").write_text(manifest)
    return folder


PROMPTS = ("a photo of a {} on the beach", f"an oil painting of a {{}} in {EVIL}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "outputs" / "disc", make_photos(tmp_path / "photos"), PROMPTS)


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(data)


def shown(value: Any) -> list[str]:
    """Every picture of a page, as `src` has it."""
    if isinstance(value, dict):
        own = [v for k, v in value.items() if k in ("src", "masked")]
        return own + [src for v in value.values() for src in shown(v)]
    return [src for v in value for src in shown(v)] if isinstance(value, list) else []


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a photo of a {} on the beach", ("photo", "on the beach")),
        ("an oil painting of a {} in a galaxy", ("oil painting", "in a galaxy")),
        ("pixel art of a {} in the city", ("pixel art", "in the city")),
        ("a {} knitted from thick wool", ("", "knitted from thick wool")),
        ("{}", ("", "")),
        ("a neon tube sign in the shape of a <new1>", ("neon tube sign in the shape", "")),
        ("The {}, and a {} in snow.", ("", "and a   in snow")),
    ],
)
def test_the_words_before_the_subject_are_the_style_and_those_after_it_the_place(prompt, parts):
    assert style_and_place(prompt) == parts


def test_a_page_shows_all_that_a_run_left(run: Path) -> None:
    (run / "samples" / "metrics.json").write_text(
        json.dumps(
            {
                "overall": {"dino_i": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 4}},
                "images": [{"file": row(1, "")["file"], "dino_i": 0.25, "prompt": "a {}"}],
            }
        )
    )
    run_gallery([])
    (found,) = data_of(run / "samples" / "gallery.html")["runs"]
    assert found["name"] == "disc" and found["word"] == WORD
    assert [photo["name"] for photo in found["photos"]] == [f"{n} <i>.jpg" for n in range(3)]
    assert ["masked" in photo for photo in found["photos"]] == [False, True, True]
    assert [preview["step"] for preview in found["previews"]] == [2, 4]
    assert found["curve"] == [[1, 1.0], [2, 0.5], [4, 0.25]]
    assert found["marks"] == [["dino_i", "0.500 (0.400 to 0.600)"]]
    assert [sample["marks"] for sample in found["samples"]] == [[], [["dino_i", "0.250"]], [], []]
    assert [sample["style"] for sample in found["samples"][::2]] == ["photo", "oil painting"]
    assert [sample["number"] for sample in found["samples"]] == [0, 1, 0, 1]
    assert found["samples"][3]["prompt"] == PROMPTS[1]
    assert found["samples"][3]["text"] == PROMPTS[1].replace("{}", WORD)
    assert ["max_train_steps", "7"] in found["settings"]
    assert len(found["commands"]) == 2


def test_nothing_that_a_run_says_is_read_as_html_and_only_our_script_may_run(run: Path) -> None:
    run = run.rename(run.with_name("<img src=x onerror=alert(1)>"))  # the page's title is its name
    run_gallery([])
    text = (run / "samples" / "gallery.html").read_text(encoding="utf-8")
    assert EVIL in json.dumps(data_of(run / "samples" / "gallery.html")).replace('\\"', '"')
    assert "<img src=x" not in text and "<b>toy" not in text
    assert text.count("<script") == 2 == text.count("</script>")
    code = re.findall(r"<script>(.*?)</script>", text, re.S)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    digests = re.findall(r"script-src 'sha256-([^']*)'", policy)
    assert [base64.b64encode(hashlib.sha256(c.encode()).digest()).decode() for c in code] == digests
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.mark.parametrize("embed", [True, False])
def test_no_absolute_path_and_no_exif_are_in_it(run: Path, tmp_path: Path, embed: bool) -> None:
    assert b"CameraOfSomebody" in (tmp_path / "photos" / "0 <i>.jpg").read_bytes()
    run_gallery(["--embed" if embed else "--no-embed"])
    page = run / "samples" / "gallery.html"
    assert str(tmp_path) not in page.read_text() and str(Path.home()) + "/" not in page.read_text()
    pictures = shown(data_of(page))
    assert len(pictures) == 3 + 2 + 2 + 4
    for src in pictures:
        assert src.startswith("data:image/") == embed
        data = (
            base64.b64decode(src.partition(",")[2]) if embed else (page.parent / src).read_bytes()
        )
        assert b"CameraOfSomebody" not in data and b"Exif" not in data
        assert not Image.open(io.BytesIO(data)).getexif()


def test_the_commands_in_it_are_those_that_made_the_run(run: Path, tmp_path: Path) -> None:
    found = find_run(run)
    bash, name, photos, word, *flags = shlex.split(training_command(found))
    assert (bash, name) == ("bash", "scripts/train.sh")
    config = parse(TrainConfig, ["--instance_data_dir", photos, "--class_word", word, *flags])
    assert config == config_of(Path("outputs/disc"), Path("photos"))

    bash, name, concept, *flags = shlex.split(drawing_command(found))
    assert (name, concept) == ("scripts/test.sh", "outputs/disc/concept.safetensors")
    config = parse(SampleConfig, ["--concept", concept, *flags])
    assert [job.prompt for job in jobs_of(config, "x")] == [p for p in PROMPTS for _ in range(2)]
    assert (config.seed, config.num_inference_steps, config.guidance_scale) == (3, 9, 2.5)
    assert (config.height, config.width, config.negative_prompt) == (96, 64, "red")
    assert config.pretrained_model_name_or_path == "models/sd" and config.rra

    flags = shlex.split(drawing_command(found, found.rows[3]))[3:]
    assert [job.prompt for job in jobs_of(parse(SampleConfig, flags), "x")] == [PROMPTS[1]] * 2


OPTION = {
    "dci": {"noun": "cup", "strength": 2.0, "share": 0.3, "gate": "level", "guidance": None},
    "dreammatcher": {
        "start": 0.0,
        "layers": ["up_blocks.3"],
        "limit": 0.4,
        "guidance": 0.0,
        "masks": False,
    },
    "alignit": {},
}


@pytest.mark.parametrize("name", OPTION)
def test_what_worked_at_sampling_is_in_the_command_that_drew(run: Path, name: str) -> None:
    found = find_run(run)
    drawn = row(0, PROMPTS[0], rra=False, **{name: OPTION[name]})
    config = parse(SampleConfig, shlex.split(drawing_command(found, drawn))[3:])
    (option,) = options_of(config)
    assert json.loads(json.dumps(option_facts([option]))) == {name: OPTION[name]}


def test_a_training_of_another_method_is_told_from_that_methods_preset(
    run: Path, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "outputs" / "other", tmp_path / "photos", PROMPTS)
    given = {"method": "custom_diffusion", "masking": "loss", "train_batch_size": 2}
    config = config_of(folder, tmp_path / "photos", **given)
    (folder / "config.json").write_text(to_json(told(config, folder)), encoding="utf-8")
    _, _, photos, word, *flags = shlex.split(training_command(find_run(folder)))
    again = parse(TrainConfig, ["--instance_data_dir", photos, "--class_word", word, *flags])
    differing = [n for n, v in vars(config).items() if getattr(again, n) != v]
    assert set(differing) <= {"instance_data_dir", "output_dir"}


def test_of_several_concepts_no_command_is_told(run: Path) -> None:
    assert drawing_command(find_run(run), row(0, "a {1} and a {2}", concept="abc+def")) == ""


def test_prompts_of_a_bundled_file_are_named_by_it(run: Path, tmp_path: Path) -> None:
    prompts = tuple(job.prompt for job in jobs_of(SampleConfig(), "models/sd"))
    other = make_run(tmp_path / "outputs" / "other", tmp_path / "photos", prompts)
    assert "--prompts assets/prompts/style.txt" in drawing_command(find_run(other))


def test_a_concept_that_must_not_give_photos_away_has_a_page_without_them(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    run = make_run(tmp_path / "outputs" / "x", photos, PROMPTS, embed_reference=False)
    run_gallery([])
    (found,) = data_of(run / "samples" / "gallery.html")["runs"]
    assert found["photos"] == [] and "--no-embed_reference" in found["note"]


def test_runs_stand_side_by_side_in_a_page_above_them(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "outputs" / "other", tmp_path / "photos", PROMPTS[:1])
    (other / "samples").rename(other / "drawn")
    only = make_run(tmp_path / "outputs" / "only", tmp_path / "gone", PROMPTS)
    (only / "config.json").unlink()
    run_gallery(["--runs", str(run), str(other / "drawn"), str(only)])
    runs = data_of(tmp_path / "outputs" / "gallery.html")["runs"]
    assert [each["name"] for each in runs] == ["disc", "other / drawn", "only"]
    assert [len(each["samples"]) for each in runs] == [4, 2, 4]
    assert [len(each["commands"]) for each in runs] == [2, 2, 1]
    assert [len(each["photos"]) for each in runs] == [3, 3, 0]


def test_pages_and_pictures_of_others_stay_and_stale_ones_of_ours_go(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    run_gallery(["--no-embed"])
    folder = run / "samples" / "gallery_pictures"
    before = sorted(path.name for path in folder.iterdir())
    assert all(map(is_picture, folder.iterdir())) and len(before) == 11
    (run / "preview" / "step-000002.png").unlink()
    run_gallery(["--no-embed"])
    assert len(before) - len(list(folder.iterdir())) == 1

    (folder / "mine.txt").write_text("mine")
    assert "mine.txt" in refused(capsys, run_gallery, ["--no-embed"])
    run_gallery(["--no-embed", "--overwrite"])
    assert (folder / "mine.txt").read_text() == "mine"

    page = run / "samples" / "gallery.html"
    page.write_text("mine")
    assert "gallery.html" in refused(capsys, run_gallery, [])
    assert page.read_text() == "mine"
    run_gallery(["--overwrite"])
    assert is_ours(page)


def test_a_drawing_does_not_fail_for_a_page_that_cannot_be_written(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = run / "samples" / "gallery.html"
    page.write_text("mine")
    assert write_beside(page.parent) is None
    assert "not written by EqDiff" in caplog.text and page.read_text() == "mine"
    page.unlink()
    (run.parents[1] / "photos" / "0 <i>.jpg").write_text("no picture any more")
    assert write_beside(page.parent) is None and "no page of the pictures" in caplog.text
    (run.parents[1] / "photos" / "0 <i>.jpg").unlink()
    assert write_beside(page.parent) == page and is_ours(page)
