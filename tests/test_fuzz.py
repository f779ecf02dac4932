"""Files, prompts, photos and settings as no one would make them: each is taken or refused with a
UserError."""

import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import fuzz
import pytest
import torch
from helpers import ROOT, environment, flags, run_test
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from eqdiff.base.load import load_base
from eqdiff.concept.file import load_concept
from eqdiff.data.folder import load_photo
from eqdiff.errors import UserError
from eqdiff.gallery.page import MOST
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.sampling.folder import GRID_PIXELS, finish, make_folder, save_image, start_run
from eqdiff.settings.evaluate import EvalConfig
from eqdiff.settings.export import ExportConfig
from eqdiff.settings.masks import MaskConfig
from eqdiff.settings.options import from_json, to_json
from eqdiff.settings.presets import parse
from eqdiff.settings.prompts import require_slot
from eqdiff.settings.sample import Job, SampleConfig
from eqdiff.settings.train import TrainConfig
from eqdiff.tokens import truncated_tails

pytestmark = pytest.mark.slow
often = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
anything = st.text(st.characters(exclude_categories=()), max_size=200)


@pytest.fixture(scope="module")
def concept(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A concept file as it should be; there is no training in it."""
    folder = tmp_path_factory.mktemp("concept")
    fuzz.originals(load_base(str(tiny_base)), folder)
    return folder / "0.safetensors"


# -- concept files ---------------------------------------------------------------------------------


def figures_of_fuzz(base: Path, folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests" / "fuzz.py"), str(base), str(folder), str(count)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("count", [30, pytest.param(10_000, marks=pytest.mark.long)])
def test_a_broken_concept_file_loads_or_is_refused(
    tiny_base: Path, tmp_path: Path, count: int, record_property: Callable[[str, object], None]
) -> None:
    """Nothing else happens, in bounded memory (the process has no more), and the base stays as it
    is."""
    found = figures_of_fuzz(tiny_base, tmp_path, count)
    record_property("mutated concept files", found)
    assert found["other"] == []
    assert found["loaded"] + found["refused"] == count
    assert found["loaded"] > count / 50
    assert found["base_as_before"]
    assert found["grown_mb"] < 500


def test_a_terabyte_that_a_file_has_is_not_read(concept: Path, tmp_path: Path) -> None:
    """Sparse: the disk holds a few bytes of it, and header and size agree."""
    header, _ = fuzz.split_file(concept.read_bytes())
    start = max(
        about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"
    )
    header["unet.huge"] = {"dtype": "F32", "shape": [2**38], "data_offsets": [start, start + 2**40]}
    path = tmp_path / "huge.safetensors"
    head = fuzz.joined(header, b"")
    path.write_bytes(head)
    try:
        os.truncate(path, len(head) + start + 2**40)
    except OSError:
        pytest.skip("this disk makes no sparse files of that size")
    with pytest.raises(UserError, match="more than any concept"):
        load_concept(path)


def test_names_of_photos_are_labels_and_no_paths(concept: Path, tmp_path: Path) -> None:
    header, data = fuzz.split_file(concept.read_bytes())
    facts = json.loads(header["__metadata__"]["concept"])
    for name in ("../x.jpg", "/x.jpg", "a/b.jpg", "", "..", "a\0b"):
        facts["photos"] = [name, "fine.jpg"]
        header["__metadata__"]["concept"] = json.dumps(facts)
        (tmp_path / "c.safetensors").write_bytes(fuzz.joined(header, data))
        with pytest.raises(UserError, match="photos"):
            load_concept(tmp_path / "c.safetensors")


# -- prompts ---------------------------------------------------------------------------------------


def draw(base: Path, concept: Path, prompts: list[str], *more: str) -> None:
    given = {
        "pretrained_model_name_or_path": base,
        "concept": concept,
        "num_inference_steps": 1,
        "batch_size": 50,
    }
    run_test([*flags(given), *[f"--prompt={prompt}" for prompt in prompts], *more])


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("count", [12, pytest.param(1000, marks=pytest.mark.long)])
def test_every_prompt_renders_or_is_refused_and_stays_in_its_folder(
    tiny_base: Path,
    concept: Path,
    tmp_path: Path,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    here = tmp_path / "sandbox" / "deep" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before, prompts = everything_under(tmp_path), fuzz.prompts(count, seed=1)
    pipe = EqDiffPipeline.of(load_base(str(tiny_base))).load_concept(str(concept))
    fine, late = [], []
    for prompt in prompts:
        try:
            SampleConfig(prompt=(prompt,))
        except UserError:
            capsys.readouterr()
            with pytest.raises(SystemExit) as stop:
                draw(tiny_base, concept, [prompt])
            assert stop.value.code == 2
            err = capsys.readouterr().err
            assert (
                err.startswith("error: ")
                and err.count("\n") == 1
                and err[:-1].encode(errors="replace")
            )
            continue
        try:
            pipe.require_room([prompt])
            fine.append(prompt)
        except UserError as error:
            late.append((prompt, str(error)))
    assert all("lies beyond" in line for _, line in late)
    assert len(fine) > count / 3
    assert late
    for prompt, _ in late[:2]:
        with pytest.raises(SystemExit) as stop:
            draw(tiny_base, concept, [*fine[:1], prompt], "--output_dir", str(tmp_path / "late"))
        assert stop.value.code == 2
        assert not list((tmp_path / "late" / "images").iterdir())
    draw(tiny_base, concept, fine, "--output_dir", str(tmp_path / "out"))
    beyond_out = {
        name for name in everything_under(tmp_path) - before if not name.startswith(("out", "late"))
    }
    assert not beyond_out
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    ]
    assert [row["prompt"] for row in rows] == fine
    names = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert names == sorted(Path(row["file"]).name for row in rows)
    assert max(len(os.fsencode(name)) for name in names) <= 255
    record_property(
        "prompts", f"{count}, {len(fine)} drawn, {count - len(fine)} refused, no file outside"
    )
    made = {"images", "grid.png", "manifest.jsonl"}
    made |= {"gallery.html"} if len(fine) <= MOST else set()
    assert {path.name for path in (tmp_path / "out").iterdir()} == made


@often
@given(anything)
@example("{}\ud800")
def test_a_prompt_is_refused_or_is_text_with_a_slot_and_a_harmless_file_name(prompt: str) -> None:
    names = [Job(index, prompt, number).file for index in (0, 1) for number in (0, 1)]
    assert len(set(names)) == 4
    assert all(
        name.isascii() and len(name) < 100 and not {"/", "\\", "\0"} & set(name) for name in names
    )
    try:
        require_slot("--prompt", prompt)
    except UserError as error:
        assert str(error).startswith("--prompt: ")  # noqa: PT017 (either is right)
        return
    assert "{}" in prompt or "<new1>" in prompt
    assert "\0" not in prompt
    prompt.encode()


@often
@given(st.lists(st.sampled_from([*fuzz.WORDS, "dog", "é", "中", "😀", "zyzzyva"]), max_size=90))
def test_what_is_cut_off_is_the_end_of_the_text(tiny_base: Path, words: list[str]) -> None:
    from transformers import CLIPTokenizer

    tokenizer = TOKENIZERS.setdefault(
        tiny_base, CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    )
    text = " ".join(words)
    whole = tokenizer(text, verbose=False).input_ids
    (cut,) = truncated_tails(tokenizer, [text], 77)
    assert bool(cut) == (len(whole) > 77)
    assert text.endswith(cut)
    read = tokenizer(text, truncation=True, max_length=77).input_ids
    kept = text[: len(text) - len(cut)] if cut else text
    again = tokenizer(kept, truncation=True, max_length=77).input_ids
    assert again[1:70] == read[1:70]


TOKENIZERS: dict[Path, Any] = {}


def test_what_is_cut_off_is_said_once(
    tiny_base: Path, concept: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    prompt = "a {} " + "in the snow " * 30 + "beside a castle"
    draw(
        tiny_base,
        concept,
        [prompt, "a {}"],
        "--output_dir",
        str(tmp_path),
        "--num_images_per_prompt",
        "2",
    )
    said = [line for line in caplog.messages if "not seen" in line]
    assert len(said) == 1
    assert said[0].endswith("in the snow beside a castle")


# -- what a drawing run leaves ---------------------------------------------------------------------


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (shade, 0, 0))


def run(folder: Path, prompts: list[str], shade: int, *, killed_after: int | None = None) -> None:
    """A drawing run; it may be killed after some pictures."""
    jobs = [Job(index, prompt, 0) for index, prompt in enumerate(prompts)]
    make_folder(folder)
    start_run(folder)
    for job in jobs[:killed_after]:
        save_image(folder, job, picture(shade), {"seed": shade})
    if killed_after is None:
        finish(folder, jobs, "mug")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_killed_drawing_leaves_the_former_one_whole_and_nothing_to_the_next(
    tmp_path: Path,
) -> None:
    run(tmp_path, ["a {}", "b {}"], 1)
    (tmp_path / "images" / "mine.png").write_bytes(b"precious")
    before = contents(tmp_path)
    run(tmp_path, ["a {}", "b {}", "c {}", "d {}"], 2, killed_after=3)
    left = contents(tmp_path)
    assert {name: left[name] for name in before} == before
    run(tmp_path, ["e {}"], 3)
    assert set(contents(tmp_path)) == {
        "images/0000-e-S-0.png",
        "images/mine.png",
        "manifest.jsonl",
        "grid.png",
    }
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("moves", range(5))
def test_a_run_killed_while_its_pictures_are_moved_is_finished_by_the_next(
    tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming is broken off after some of them; what begins next sees the finished run's
    results.
    """
    run(tmp_path, ["a {}", "x {}"], 1)
    done, replace = 0, os.replace

    def failing(source: Any, target: Any) -> None:
        nonlocal done
        if done == moves:
            raise KeyboardInterrupt
        done += 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ["a {}", "b {}"], 2)
    monkeypatch.undo()
    start_run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == ([1, 1] if moves == 0 else [2, 2])
    for row in rows:
        assert Image.open(tmp_path / row["file"]).getpixel((0, 0))[0] == row["seed"]
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_a_hostile_manifest_deletes_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious.png").write_bytes(b"x")
    out = tmp_path / "out"
    make_folder(out)
    (out / "images" / "mine.png").write_bytes(b"x")
    names = [
        "../precious.png",
        "images/../../precious.png",
        "images/mine.png",
        str(tmp_path / "precious.png"),
        5,
    ]
    lines = [json.dumps({"file": name}) for name in names] + [
        "[" * 9999,
        "",
        "5",
        '"images/mine.png"',
    ]
    (out / "manifest.jsonl").write_text("\n".join(lines))
    run(out, ["a {}"], 1)
    assert (tmp_path / "precious.png").exists()
    assert (out / "images" / "mine.png").exists()


def test_a_thousand_pictures_make_a_grid_of_bounded_size_with_few_open_files(
    tmp_path: Path,
) -> None:
    import resource

    from eqdiff.sampling.folder import _grid

    Image.new("RGB", (512, 512), "red").save(tmp_path / "one.png")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        sheet = _grid([tmp_path / "one.png"] * 400, ["a {}"] * 400)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sheet.width * sheet.height < 1.5 * GRID_PIXELS


# -- photos ----------------------------------------------------------------------------------------


def pillow_reads(data: bytes) -> bool:
    """Older ones do not read everything that they write: a TIFF in YCbCr."""
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


@often
@given(
    mode=st.sampled_from(
        ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB"]
    ),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"]),
    orientation=st.integers(-1, 300),
    cut=st.one_of(st.none(), st.integers(0, 400)),
    profile=st.sampled_from([None, b"", b"junk" * 40]),
)
def test_any_photo_is_read_upright_or_refused(
    tmp_path: Path,
    mode: str,
    size: tuple[int, int],
    kind: str,
    orientation: int,
    cut: int | None,
    profile: bytes | None,
) -> None:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = max(0, orientation)
    try:
        how = {"icc_profile": profile} if profile is not None else {}
        Image.new(mode, size).save(out, kind, exif=exif.tobytes(), **how)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return  # Pillow does not write that
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(out.getvalue()[:cut])
    try:
        photo = load_photo(path)
    except UserError as error:
        assert path.name in str(error)  # noqa: PT017 (either is right)
        assert cut is not None or mode in ("F", "LAB", "I") or not pillow_reads(out.getvalue())
        return
    assert photo.image.mode == "RGB"
    assert sorted(photo.image.size) == sorted(size)


@often
@given(
    st.binary(max_size=300),
    st.sampled_from([".jpg", ".png", ".gif", ".tif", ".webp", ".bmp", ".ppm"]),
)
@example(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", ".png")
@example(b"GIF89a\xff\xff\xff\xff", ".gif")
@example(b"P6 1 1 255\n", ".ppm")
def test_any_bytes_are_a_photo_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(content)
    try:
        assert load_photo(path).image.mode == "RGB"
    except UserError as error:
        assert path.name in str(error)  # noqa: PT017 (either is right)


# -- settings --------------------------------------------------------------------------------------

SETTINGS = (TrainConfig, SampleConfig, ExportConfig, EvalConfig, MaskConfig)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    anything,
    st.binary(max_size=3),
    st.lists(st.one_of(st.floats(), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=2),
    st.sampled_from(
        [
            "paper",
            "toybox",
            "zero",
            "noise",
            "8",
            "ddim",
            "concept",
            0,
            1,
            8,
            64,
            0.5,
            [0.1, 0.1, 0.8],
            ["x"],
        ]
    ),
)


@pytest.mark.parametrize("cls", SETTINGS, ids=lambda cls: cls.__name__)
@settings(often, max_examples=300)
@given(data=st.data())
def test_any_value_of_a_setting_is_taken_or_refused_and_survives_json(
    cls: type, data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(dataclasses.fields(cls)))
    value = data.draw(JUNK)
    try:
        config = cls(**{field.name: value})
    except UserError as error:
        assert "--" in str(error)  # noqa: PT017 (either is right)
        return
    again = from_json(cls, to_json(config).encode().decode())
    assert again == config


def plausible(hint: Any, field: dataclasses.Field) -> st.SearchStrategy:
    """Values of a field's type and range."""
    low, high = field.metadata["low"], field.metadata["high"]
    if type(None) in get_args(hint):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(int(max(low, -(2**40))), int(min(high, 2**40)))
    if hint is float:
        return st.floats(float(max(low, -1e6)), float(min(high, 1e6)), allow_nan=False)
    if get_origin(hint) is not None and get_origin(hint) is not tuple:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        first, *rest = get_args(hint)
        one = plausible(first, field)
        return (
            st.lists(one, min_size=1, max_size=3)
            if rest == [...]
            else st.tuples(*[one] * (1 + len(rest)))
        )
    return st.text("abcdefghijklmnop {}/._", min_size=1, max_size=20)


def words_of(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


@pytest.mark.parametrize("cls", SETTINGS, ids=lambda cls: cls.__name__)
@settings(often, max_examples=150)
@given(data=st.data())
def test_a_command_line_says_what_the_settings_say(cls: type, data: st.DataObject) -> None:
    hints = get_type_hints(cls)
    field = data.draw(
        st.sampled_from([field for field in dataclasses.fields(cls) if field.name != "preset"])
    )
    value = data.draw(plausible(hints[field.name], field))
    given = {"preset": "paper"} if cls is TrainConfig else {}
    if field.name in ("memory", "method"):
        return  # they change others: test_config and test_methods have them
    try:
        config = cls(**given, **{field.name: value})
    except UserError:
        return
    words = [
        word for name, one in {**given, field.name: value}.items() for word in words_of(name, one)
    ]
    if any(word.startswith("-") and not word.startswith("--") for word in words):
        return  # -1 in a list is a flag to argparse
    found = parse(cls, words)
    assert found == config
    assert from_json(cls, to_json(found)) == config


def test_what_fuzzing_counts_as_finite_is_so() -> None:
    """The mutator's own values: were they harmless, the fuzz would show nothing."""
    assert any(isinstance(value, float) and math.isnan(value) for value in fuzz.HOSTILE)
    raw = fuzz.joined({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(16))
    seen = {fuzz.mutated(raw, fuzz.random.Random(seed)) for seed in range(200)}
    assert len(seen) > 100
    assert torch.isfinite(torch.zeros(1)).all()
