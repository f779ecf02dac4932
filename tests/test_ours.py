"""Nothing that is not ours is removed or replaced unasked: what is told by its mark, what is
refused, what survives."""

import ast
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, flags, long_after, refused, run_test, run_train, training_words
from PIL import Image

from eqdiff import ours
from eqdiff.settings.options import WRITTEN_BY
from eqdiff.training.checkpoint import all_checkpoints

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PNG = b"\x89PNG\r\n\x1a\nsomebody's"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def one_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQDIFF_CACHE", str(cache))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def words(tiny_base: Path, tiny_subject: Path, tmp_path: Path) -> list[str]:
    """A training of two steps into `out`, with one of everything that a training writes."""
    (tmp_path / "prompts.txt").write_text("a {}\n")
    given = {"validation_prompts": tmp_path / "prompts.txt", "log_steps": 1}
    given |= {"max_train_steps": 2, "checkpointing_steps": 1, "validation_steps": 1}
    return training_words(
        tiny_base, tiny_subject, tmp_path / "out", report_to="tensorboard", **given
    )


def state_of(folder: Path) -> dict[str, str]:
    """Everything in a folder: files by content, links by where they lead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = (
            os.readlink(path)
            if path.is_symlink()
            else ""
            if path.is_dir()
            else path.read_bytes().hex()
        )
        found[str(path.relative_to(folder))] = hashlib.sha256(about.encode()).hexdigest()
    return found


def write(path: Path, content: bytes = b"somebody's") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# -- training --------------------------------------------------------------------------------------

FOREIGN: dict[str, bytes] = {
    "checkpoints/sd15.safetensors": b"x",
    "checkpoints/step-000001/pytorch_model.bin": b"x",
    "checkpoints/step-000001": b"x",
    "preview/mine.png": PNG,
    "preview/step-000001.png": PNG,
    "curves/events.out.tfevents.1.host": b"x",
    "curves/notes/a.txt": b"x",
    "config.json": b'{"model_type": "clip"}',
    "log.jsonl": b'{"step": 1, "loss": 2}\n',
    "masks.png": PNG,
    "masks/00.png": PNG,
    "masks/overlay/overlay.jpg": b"\xff\xd8",
    ".eqdiff.lock": b"x",
    "checkpoints": b"x",
    "preview": b"x",
    "masks.png/a.txt": b"x",
    "README.md/a.txt": b"x",
    "concept.safetensors/a.txt": b"x",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_training_refuses_a_folder_with_what_is_not_ours_and_changes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    write(tmp_path / "out" / name, FOREIGN[name])
    write(
        tmp_path / "out" / "notes.txt"
    )  # what does not lie at a name of ours is nobody's business
    before = state_of(tmp_path / "out")
    said = refused(capsys, run_train, words)
    named = [
        part for part in (Path(name), *Path(name).parents) if str(tmp_path / "out" / part) in said
    ]
    assert named, said
    assert state_of(tmp_path / "out") == before


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume_from_checkpoint", "latest"]])
@pytest.mark.parametrize(
    "name", ["checkpoints", "preview", "curves", "masks.png", "checkpoints/step-000002"]
)
def test_what_is_of_another_kind_is_refused_whatever_is_asked_for(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, name: str, more: list[str]
) -> None:
    """A file where a folder belongs and a dead link, not hours later."""
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    kinds: list[Callable[[], object]] = [lambda: path.symlink_to(tmp_path / "nowhere")]
    kinds += [] if name == "masks.png" else [lambda: path.write_bytes(b"x")]
    for make in kinds:
        make()
        before = state_of(tmp_path / "out")
        assert str(path) in refused(capsys, run_train, [*words, *more])
        assert state_of(tmp_path / "out") == before
        path.unlink()


def test_overwrite_replaces_files_at_our_names_and_leaves_the_rest(
    words: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kept = [
        "checkpoints/sd15.safetensors",
        "checkpoints/step-000001/pytorch_model.bin",
        "preview/mine.png",
    ]
    kept += ["curves/events.out.tfevents.1.host", "preview/.hidden", ".lock", "README.md"]
    for name in (*kept, "config.json", "log.jsonl", "masks.png"):
        write(out / name)
    run_train([*words, "--overwrite"])
    assert all((out / name).read_bytes() == b"somebody's" for name in kept)
    assert (
        ours.is_config(out / "config.json")
        and ours.is_log(out / "log.jsonl")
        and ours.is_picture(out / "masks.png")
    )
    steps = all_checkpoints(out / "checkpoints")
    assert [path.name for path in steps] == ["step-000001", "step-000002"] and all(
        map(ours.is_checkpoint, steps)
    )
    run_train([*words, "--overwrite", "--checkpointing_steps", "0", "--validation_steps", "0"])
    assert all((out / name).read_bytes() == b"somebody's" for name in kept)
    assert not all_checkpoints(out / "checkpoints") and not list((out / "preview").glob("step-*"))


def test_masks_of_somebody_are_refused_even_then_unless_they_are_the_users(
    words: list[str], tiny_subject: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(tiny_subject / "masks", tmp_path / "out" / "masks")
    assert "00.png" in refused(capsys, run_train, [*words, "--overwrite"])
    before = state_of(tmp_path / "out" / "masks")
    run_train([*words, "--mask_dir", str(tmp_path / "out" / "masks")])
    assert state_of(tmp_path / "out" / "masks") == before


def test_all_that_a_training_writes_has_our_mark(
    words: list[str], tiny_subject: Path, tmp_path: Path
) -> None:
    photos = Path(shutil.copytree(tiny_subject, tmp_path / "photos"))
    (photos / "masks" / "00.png").unlink()  # one to be made
    words[words.index("--instance_data_dir") + 1] = str(photos)
    out = tmp_path / "out"
    run_train(words)
    assert ours.foreign_file(out) is None and ours.foreign_entry(out) is None
    (out / "config.json").unlink()
    assert ours.foreign_entry(out) is None, "told without the configuration beside it"
    assert (out / "masks" / "00.png").is_file() and (
        out / "masks" / "overlay" / "overlay.jpg"
    ).is_file()


def unmarked(out: Path) -> None:
    """A training's folder as versions without marks left it."""
    for path in filter(ours.is_picture, out.rglob("*.png")):
        image = Image.open(path)
        image.load()
        Image.fromarray(np.asarray(image)).save(path)
    for path in out.rglob("*" + ours.CURVES):
        path.rename(path.with_name(path.name.removesuffix(ours.CURVES)))
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(
        json.dumps({n: v for n, v in settings.items() if n != "written_by"})
    )


@pytest.mark.long
def test_results_of_older_versions_are_known_by_their_names_beside_our_configuration(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    run_train(words)
    unmarked(out)
    write(out / "preview" / "mine.png", PNG)
    assert "holds a concept" in refused(capsys, run_train, words)
    run_train([*words, "--overwrite"])
    assert len(list((out / "curves").iterdir())) == 1
    unmarked(out)
    (out / "concept.safetensors").unlink()
    ours.clear(out, ["checkpoints"])
    assert "mine.png" in refused(capsys, run_train, words)
    (out / "preview" / "mine.png").unlink()
    run_train(words)
    assert (
        ours.is_picture(out / "preview" / "step-000002.png")
        and len(list((out / "curves").iterdir())) == 1
    )


@pytest.mark.long
def test_what_somebody_put_into_a_checkpoint_outlives_it(words: list[str], tmp_path: Path) -> None:
    """Also the pictures drawn from it: of those beyond the limit, replaced, or in the way of the
    next."""
    out = tmp_path / "out"
    run_train(words)
    write(out / "checkpoints" / "step-000001" / "samples" / "a.png", PNG)
    run_train([*words, "--overwrite"])
    step = out / "checkpoints" / "step-000001"
    assert ours.is_checkpoint(step) and (step / "samples" / "a.png").read_bytes() == PNG
    run_train([*words, "--overwrite", "--checkpoints_total_limit", "1"])
    assert [path.name for path in all_checkpoints(out / "checkpoints")] == ["step-000002"]
    assert [path.name for path in step.iterdir()] == ["samples"]


def test_a_copy_under_a_name_of_somebodys_own_is_theirs(tmp_path: Path) -> None:
    (tmp_path / "preview").mkdir()
    for name in ("step-000001.png", "best.png"):
        ours.save_picture(Image.new("RGB", (8, 8)), tmp_path / "preview" / name)
    assert ours.foreign_entry(tmp_path) == tmp_path / "preview" / "best.png"
    ours.clear(tmp_path, ["preview"])
    assert [path.name for path in (tmp_path / "preview").iterdir()] == ["best.png"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["checkpoints", "preview", "curves"])
def test_a_linked_folder_is_followed(words: list[str], tmp_path: Path, name: str) -> None:
    out, disk = tmp_path / "out", tmp_path / "disk"
    out.mkdir()
    disk.mkdir()
    (out / name).symlink_to(disk)
    run_train(words)
    first = state_of(disk)
    write(disk / "mine")
    run_train([*words, "--overwrite", "--seed", "1"])
    assert (out / name).is_symlink() and (disk / "mine").read_bytes() == b"somebody's"
    assert len(state_of(disk)) == len(first) + 1 and state_of(disk) != first
    assert not list(disk.glob(".*"))


# -- drawing ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def concept(
    tiny_base: Path, tiny_subject: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("concept") / "out"
    given = {
        "pretrained_model_name_or_path": tiny_base,
        "instance_data_dir": tiny_subject,
        "class_word": "dog toy",
    }
    given |= {"output_dir": out, "max_train_steps": 1, "report_to": "none"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQDIFF_CACHE", str(cache))
        run_train(flags({**TINY, **given}))
    return out / "concept.safetensors"


def drawing(base: Path, concept: Path, out: Path, *prompts: str) -> list[str]:
    given = {
        "pretrained_model_name_or_path": base,
        "concept": concept,
        "output_dir": out,
        "num_inference_steps": 1,
    }
    return [*flags(given), "--prompt", *prompts]


IN_THE_WAY: dict[str, bytes] = {
    "manifest.jsonl": b'{"file": "images/0000-a-S-0.png", "prompt": "a dog"}\n',
    "grid.png": PNG,
    "images/0000-a-S-0.png": PNG,
    "images/mine.png": PNG,
    "drawing.partial/precious.txt": b"x",
    "drawing.partial/0000-a-S-0.png": PNG,
    "drawing.partial/manifest.jsonl": b"x",
    "images": b"x",
    "drawing.partial": b"x",
    "manifest.jsonl/a.txt": b"x",
    "images/0000-a-S-0.png/a.txt": b"x",
}
NEVER = ("drawing.partial/precious.txt", "images", "drawing.partial", "manifest.jsonl/a.txt",
         "images/0000-a-S-0.png/a.txt")  # fmt: skip


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_a_drawing_refuses_a_folder_with_what_is_not_ours_and_changes_nothing(
    tiny_base: Path, concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    out = tmp_path / "data"
    write(out / name, IN_THE_WAY[name])
    write(out / "notes.txt")
    before, argv = state_of(out), drawing(tiny_base, concept, out, "a {}")
    for more in [[], ["--overwrite"]] if name in NEVER else [[]]:
        said = refused(capsys, run_test, [*argv, *more])
        assert [part for part in (Path(name), *Path(name).parents) if str(out / part) in said]
        assert state_of(out) == before
    if name not in NEVER:
        run_test([*argv, "--overwrite"])
        assert all(map(ours.is_picture, (out / "grid.png", out / "images" / "0000-a-S-0.png")))
        assert ours.is_manifest(out / "manifest.jsonl") and not (out / "drawing.partial").exists()
        assert (out / "notes.txt").exists() and (
            name != "images/mine.png" or (out / name).read_bytes() == PNG
        )


def test_a_drawing_replaces_its_own_and_not_what_somebody_put_in_its_place(
    tiny_base: Path, concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "drawn"
    run_test(drawing(tiny_base, concept, out, "a {}", "b {}"))
    for name in ("0001-b-S-0.png", "mine.png"):
        write(out / "images" / name, PNG)
    run_test(drawing(tiny_base, concept, out, "c {}"))
    assert {path.name for path in (out / "images").iterdir()} == {
        "0000-c-S-0.png",
        "0001-b-S-0.png",
        "mine.png",
    }
    before = state_of(out)
    said = refused(capsys, run_test, drawing(tiny_base, concept, out, "c {}", "b {}"))
    assert "0001-b-S-0.png" in said and state_of(out) == before


def test_pictures_of_older_versions_are_known_by_their_manifest(
    tiny_base: Path, concept: Path, tmp_path: Path
) -> None:
    out = tmp_path / "drawn"
    run_test(drawing(tiny_base, concept, out, "a {}", "b {}"))
    for path in out.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
        assert not ours.is_picture(path)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name != "written_by"} for row in rows]
    (out / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(
        out / "drawing.partial" / "0000-a-S-0.png", PNG
    )  # and what a run of theirs was killed over
    write(out / "drawing.partial" / "000000.json", json.dumps(rows[0]).encode())
    run_test(drawing(tiny_base, concept, out, "a {}"))
    assert [path.name for path in (out / "images").iterdir()] == ["0000-a-S-0.png"]
    assert all(map(ours.is_picture, out.rglob("*.png")))


@pytest.mark.parametrize("name", long_after(1, ["images", "drawing.partial"]))
def test_a_linked_folder_of_pictures_is_followed_to_another_disk(
    tiny_base: Path, concept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out, disk, replace = tmp_path / "drawn", tmp_path / "disk", os.replace

    def across(source: Path, target: Path) -> None:
        if Path(source).parent.resolve() != Path(target).parent.resolve():
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    out.mkdir()
    disk.mkdir()
    (out / name).symlink_to(disk)
    monkeypatch.setattr(os, "replace", across)
    for prompts in (["a {}", "b {}"], ["c {}"]):
        run_test(drawing(tiny_base, concept, out, *prompts))
        assert len(list((out / "images").iterdir())) == len(prompts)
    assert (out / name).is_symlink() and (out / "grid.png").is_file()
    assert [path.name for path in disk.iterdir()] == (
        ["0000-c-S-0.png"] if name == "images" else []
    )


# -- both ------------------------------------------------------------------------------------------


def test_there_is_one_remover_of_folders() -> None:
    for path in (*(ROOT / "eqdiff").rglob("*.py"), *ROOT.glob("*.py")):
        calls = [
            ast.unparse(n.func)
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call)
        ]
        assert not [call for call in calls if call.endswith(("rmtree", "shutil.move"))], path.name


def test_a_log_a_row_and_a_configuration_are_told_by_their_keys(tmp_path: Path) -> None:
    log, text = tmp_path / "log.jsonl", dict.fromkeys(ours.LOG_KEYS, 1)
    for content, known in ((text, True), ({"step": 1}, False), ([], False), (None, False)):
        log.write_text(json.dumps(content) + "\n{torn")
        assert ours.is_log(log) == known
    log.write_bytes(b"")
    assert ours.is_log(log) and not ours.is_log(tmp_path / "none")
    log.write_text("[" * 10_000)
    assert not ours.is_log(log)
    assert ours.is_row({"file": "a", **WRITTEN_BY}) and ours.is_row(dict.fromkeys(ours.ROW_KEYS, 1))
    assert not ours.is_row({"file": "a", "prompt": "b"}) and not ours.is_row([])
