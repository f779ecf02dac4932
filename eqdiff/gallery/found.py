"""What a run left in its folders, as a gallery needs it; nothing is decoded here.

A run is a training's folder, the folder of its pictures, or both.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqdiff.data.folder import find_mask, pictures_in
from eqdiff.data.subject import mask_folder
from eqdiff.errors import UserError, require
from eqdiff.evaluation.samples import MANIFEST, METRICS, concept_of, config_near, read_manifest
from eqdiff.settings.places import find_class_word, found_path

SAMPLES = "samples"
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    training: its folder; None if it is not here. samples: the folder of pictures; None without
    any. rows: of the manifest. settings: of config.json. log: lines of log.jsonl. photos: picture
    files with the folders that may hold their masks. previews: step -> grid. scores: of
    metrics.json, file -> row; overall: metric -> its mean and interval.
    """

    name: str
    training: Path | None
    samples: Path | None
    rows: tuple[Row, ...]
    settings: Row
    log: tuple[Row, ...]
    photos: tuple[Path, ...]
    masks: tuple[Path, ...]
    previews: dict[int, Path]
    scores: dict[str, Row]
    overall: Row

    @property
    def word(self) -> str:
        """What stands for the subject in captions."""
        return str(self.settings.get("class_word") or "subject")

    @property
    def folder(self) -> Path:
        """Where a page of this run alone belongs: beside the pictures."""
        return self.samples or self.training or Path()


def newest_run() -> Path:
    """The newest run under outputs/. Raises UserError if there is none."""
    files = [*Path("outputs").glob("*/config.json"), *Path("outputs").glob(f"*/*/{MANIFEST}")]
    newest = max(files, key=lambda path: path.stat().st_mtime, default=None)
    require(newest, "no run under outputs/; train one with: bash scripts/train.sh")
    return newest.parent


def find_run(folder: Path) -> Run:
    """The run that a folder is of.

    Raises UserError if it is none, or if its manifest is broken.
    """
    samples = next((f for f in (folder, folder / SAMPLES) if (f / MANIFEST).is_file()), None)
    rows = read_manifest(samples / MANIFEST) if samples else ()
    concept = concept_of(samples, rows[0]) if samples else None
    config = folder / "config.json"
    if samples and not config.is_file():
        config = config_near(samples, concept) or config

    settings = _object(config)
    remedy = "name a folder that train.sh or test.sh wrote"
    require(rows or settings, f"{folder}: neither config.json nor {MANIFEST} in it; {remedy}")

    training = config.parent if settings else None
    photos, masks = _photos(settings, training)
    report = _object(samples / METRICS) if samples else {}
    return Run(
        name=_name_of(training or folder, samples),
        training=training,
        samples=samples,
        rows=rows,
        settings=_with_word(settings, photos),
        log=_log(training),
        photos=photos,
        masks=masks,
        previews=_previews(training),
        scores=_scores(report),
        overall=report.get("overall") if isinstance(report.get("overall"), dict) else {},
    )


def _name_of(training: Path, samples: Path | None) -> str:
    """The training's name, with that of the pictures' folder if that is another than usual."""
    name = training.resolve().name
    own = samples is None or samples.name == SAMPLES or samples.resolve() == training.resolve()
    return name if own else f"{name} / {samples.resolve().name}"


def _photos(settings: Row, training: Path | None) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The training's photos if they are still there, and the folders of their masks.

    None where the concept must not give the photos away (embed_reference off).
    """
    named = settings.get("instance_data_dir")
    if training is None or not isinstance(named, str) or settings.get("embed_reference") is False:
        return (), ()

    folder = Path(found_path(named, training))
    if not folder.is_dir():
        return (), ()
    own = settings.get("mask_dir")
    try:
        users = mask_folder(folder, found_path(own, training) if isinstance(own, str) else None)
    except UserError:  # moved since
        users = folder / "masks"
    return tuple(pictures_in(folder)), (users, training / "masks")


def has_mask(run: Run, photo: Path) -> bool:
    """Whether a file holds the photo's mask."""
    return any(find_mask(folder, photo) for folder in run.masks if folder.is_dir())


def _with_word(settings: Row, photos: tuple[Path, ...]) -> Row:
    """The settings with the class word, which may stand in the photos' folder alone."""
    if settings.get("class_word") or not photos:
        return settings
    try:
        return {**settings, "class_word": find_class_word(photos[0].parent, None)}
    except (UserError, OSError):
        return settings


def _log(training: Path | None) -> tuple[Row, ...]:
    """The lines of log.jsonl that can be read and have a step and a loss."""
    path = training / "log.jsonl" if training else None
    if path is None or not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [_parsed(line) for line in lines]
    return tuple(r for r in rows if _is_number(r.get("step")) and _is_number(r.get("loss")))


def _previews(training: Path | None) -> dict[int, Path]:
    """Step -> grid, in their order."""
    files = sorted(training.glob("preview/step-*.png")) if training else []
    steps = [path.stem.removeprefix("step-") for path in files]
    return {int(step): path for step, path in zip(steps, files, strict=True) if step.isdecimal()}


def _scores(report: Row) -> dict[str, Row]:
    """Each picture's scores by its file."""
    images = report.get("images")
    rows = images if isinstance(images, list) else []
    named = [row for row in rows if isinstance(row, dict) and isinstance(row.get("file"), str)]
    return {
        row["file"]: {name: value for name, value in row.items() if _is_number(value)}
        for row in named
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _object(path: Path) -> Row:
    """The JSON object in a file; {} if there is none."""
    if not path.is_file():
        return {}
    return _parsed(path.read_text(encoding="utf-8", errors="replace"))


def _parsed(text: str) -> Row:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
