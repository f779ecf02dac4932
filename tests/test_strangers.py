"""Every root script leaves every file that is not ours as it was, wherever it is pointed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, flags, script
from test_ours import PNG, state_of, write

pytestmark = pytest.mark.slow
X = b"somebody's"

# What strangers keep in a folder, by a word for it: names and contents. A link's content is where
# it leads; `None` is a folder.
KEPT: dict[str, dict[str, bytes | str | None]] = {
    "another tool's checkpoints": {"checkpoints/sd15.safetensors": X, "checkpoints/e1/a.bin": X},
    "checkpoints at our names": {"checkpoints/step-000001/state.json": b"{}"},
    "previews": {"preview/mine.png": PNG, "preview/step-000001.png": PNG},
    "a model": {"config.json": b'{"model_type": "clip"}', "model.safetensors": X},
    "another tool's log": {"log.jsonl": b'{"step": 1, "loss": 2}\n'},
    "pictures at our names": {"masks.png": PNG, "grid.png": PNG, "images/0000-a-S-0.png": PNG},
    "curves": {"curves/events.out.tfevents.1.host": X, "events.out.tfevents.2.host": X},
    "a data set": {"manifest.jsonl": b'{"file": "1.png"}\n', "images/1.png": PNG},
    "a repository": {".git/config": X, "README.md": X, "LICENSE": X, "setup.py": X},
    "masks by hand": {"masks/00.png": PNG, "masks/overlay/overlay.jpg": X},
    "concepts": {"concept.safetensors": X, "learned_embeds.safetensors": X},
    "exports": {"export/concept.safetensors": X, "export/README.md": X, "out.safetensors": X},
    "half a drawing": {"drawing.partial/precious.txt": X, "samples/drawing.partial/a.png": PNG},
    "samples": {"samples/manifest.jsonl": X, "samples/grid.png": PNG, "samples/metrics.json": X},
    "reports": {"metrics.json": b"{}", "metrics.md": X, "curve.png": PNG, "metrics.csv": X},
    "class images": {"class/00001.png": PNG, "class/00002.jpg": X, "class/._x.png": X},
    "hidden files": {".eqdiff.lock": X, ".DS_Store": X, ".checkpoints.partial/a.txt": X},
    "files where folders belong": dict.fromkeys(("checkpoints", "preview", "masks", "images"), X),
    "folders where files belong": dict.fromkeys(("config.json/a", "grid.png/a", "masks.png/a"), X),
    "links": {"preview": "elsewhere", "elsewhere/mine.png": PNG, "checkpoints": "nowhere"},
    "temporary names": {"concept.safetensors.partial": X, "grid.png.partial": X, "a.tmp": X},
    "a finished training": {"notes.txt": X, "preview/mine.png": PNG, "samples/images/a.png": PNG},
}
SCRIPTS = ("train_eqdiff", "test_eqdiff", "export_concept", "eval_eqdiff", "make_masks")
SHORT = {name: SCRIPTS[number % len(SCRIPTS)] for number, name in enumerate(KEPT)}


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tiny_subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training and its samples."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQDIFF_CACHE", str(folder / "cache"))
        given = {"instance_data_dir": tiny_subject, "class_word": "dog toy"}
        run("train_eqdiff", tiny_base, **TINY, **given, output_dir=folder / "out")
        given = {"concept": folder / "out", "prompt": "a {}", "num_inference_steps": 1}
        run("test_eqdiff", tiny_base, **given)
    return folder / "out"


def run(name: str, base: Path, **given: Any) -> None:
    script(f"{name}.py")(flags({"pretrained_model_name_or_path": base, **given}))


def words_of(name: str, folder: Path, finished: Path, subject: Path) -> dict[str, Any]:
    """Settings that make a script write into `folder`, wherever it would write."""
    photos = {"instance_data_dir": subject, "class_word": "dog toy"}
    if name == "train_eqdiff":
        given = {**TINY, "max_train_steps": 1, "validation_steps": 1, "num_inference_steps": 1}
        given |= {"checkpointing_steps": 1, "class_data_dir": folder / "class"}
        return photos | given | {"output_dir": folder, "mask_dir": subject / "masks"}
    if name == "test_eqdiff":
        given = {"concept": finished, "prompt": "a {}", "num_inference_steps": 1}
        return given | {"output_dir": folder}
    if name == "export_concept":
        return {"concept": finished, "output": folder / "out.safetensors"}
    if name == "eval_eqdiff":
        return {"samples": folder}
    return photos | {"mask_dir": folder / "masks", "mask_maker": "colours"}


def fill(folder: Path, kept: dict[str, bytes | str | None]) -> None:
    for name, content in kept.items():
        if isinstance(content, str):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(folder / content)
        else:
            write(folder / name, content or b"")


@pytest.mark.parametrize(
    ("kept", "name"),
    [
        pytest.param(kept, name, marks=() if SHORT[kept] == name else pytest.mark.long)
        for kept in KEPT
        for name in SCRIPTS
    ],
)
def test_nothing_that_is_not_ours_changes(
    tiny_base: Path,
    tiny_subject: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: str,
    name: str,
) -> None:
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder, here = tmp_path / "folder", tmp_path / "here"
    if kept == "a finished training":
        shutil.copytree(finished, folder)
    fill(folder, KEPT[kept])
    fill(here, KEPT[kept])  # the working directory is anybody's too
    monkeypatch.chdir(here)
    others = (tiny_base, tiny_subject, finished, here)
    before, around = state_of(folder), [state_of(other) for other in others]

    status: Any = 0
    try:
        run(name, tiny_base, **words_of(name, folder, finished, tiny_subject))
    except SystemExit as stop:
        status = stop.code
    assert status in (0, 2)  # done, or a user's error

    after = state_of(folder)
    theirs = [path for path in before if path in KEPT[kept] or kept != "a finished training"]
    assert {path: after.get(path) for path in theirs} == {path: before[path] for path in theirs}
    assert [state_of(other) for other in others] == around


def test_twenty_folders_are_tried() -> None:
    assert len(KEPT) >= 20 and set(SHORT.values()) == set(SCRIPTS)
