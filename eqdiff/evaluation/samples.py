"""Folders of drawn pictures that are to be measured, and the facts of their subjects."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

from eqdiff.errors import UserError, require
from eqdiff.settings.evaluate import CLIP_MODEL, DINO_MODEL, EvalConfig
from eqdiff.settings.places import ASSETS, find_class_word, found_path, is_bundled, resolve_base
from eqdiff.settings.prompts import STRANGE
from eqdiff.settings.sample import SampleConfig

MANIFEST = "manifest.jsonl"
METRICS = "metrics.json"  # in such a folder, once it was measured


@dataclasses.dataclass(frozen=True)
class Samples:
    """A folder of drawn pictures.

    rows: of the manifest. photos: the folder of the subject's. step: of the training that drew the
    pictures, None if it is not known. concept: the file, None if it is not there.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    photos: Path
    class_word: str
    base: str
    step: int | None
    concept: Path | None = None

    @property
    def files(self) -> list[Path]:
        """The pictures, in the order of the rows."""
        return [self.folder / row["file"] for row in self.rows]

    @property
    def prompts(self) -> list[str]:
        """The prompts, in the order of the rows."""
        return [row["prompt"] for row in self.rows]


def find_samples(named: tuple[str, ...]) -> list[Path]:
    """The folders with a manifest: those named, or samples/ in them.

    Without a name it is the newest under outputs/.

    Raises UserError if there is none under outputs/.
    """
    if named:
        return [_samples_in(Path(name)) for name in named]

    manifests = sorted(
        Path("outputs").glob(f"*/samples/{MANIFEST}"), key=lambda path: path.stat().st_mtime
    )
    require(
        manifests,
        "no samples under outputs/; draw some with: bash scripts/test.sh, "
        "or name a folder with --samples",
    )
    return [manifests[-1].parent]


def _samples_in(folder: Path) -> Path:
    """samples/ in the folder if it has a manifest, else the folder itself."""
    inner = folder / "samples"
    return inner if (inner / MANIFEST).is_file() else folder


def read_samples(folder: Path, config: EvalConfig) -> Samples:
    """A folder's manifest, and the facts of its subject.

    The facts come from the config.json that training left near the concept, which the manifest
    names, or near the folder.

    Raises UserError if there is no manifest or a broken one, if a picture is not there, or if the
    photos or the class word are not known.
    """
    rows = read_manifest(folder / MANIFEST)
    concept = concept_of(folder, rows[0])
    settings = _settings_near(folder, concept)
    photos = config.instance_data_dir or settings.get("instance_data_dir")
    require(
        photos,
        f"{folder}: no config.json near it, or near its concept, says which photos it is of; "
        "name them with --instance_data_dir",
    )

    word = find_class_word(Path(photos), config.class_word or settings.get("class_word"))
    base = resolve_base(settings.get("pretrained_model_name_or_path"))
    numbers = re.findall(r"step-(\d+)", f"{concept} {folder.resolve()}")
    step = int(numbers[-1]) if numbers else settings.get("max_train_steps")
    return Samples(folder, rows, Path(photos), word, base, step, concept)


def judge_names(config: EvalConfig, samples: list[Samples]) -> tuple[str, str]:
    """CLIP and DINO: those named, else the toybox's if its base drew every folder.

    On other bases the default is the protocol's models.
    """
    toy = all(is_bundled(part.base) for part in samples)
    clip = str(ASSETS / "toybox" / "clip") if toy else CLIP_MODEL
    dino = str(ASSETS / "toybox" / "dino") if toy else DINO_MODEL
    return config.clip_model or clip, config.dino_model or dino


def require_for_base(samples: list[Samples], config: EvalConfig) -> None:
    """Raises UserError if a folder lacks what is needed to compare its concept with the base."""
    for part in samples:
        if config.wasserstein:
            enough = len(part.rows) >= 3
            require(enough, f"{part.folder}: --wasserstein needs 3 pictures or more, better 256")
            for row in part.rows:
                _require_drawable(row, part.folder / MANIFEST)
        known = part.concept or not config.latent_fisher
        require(
            known,
            f"{part.folder}: its manifest names no concept file that is there, which "
            "--latent_fisher needs; draw the pictures again",
        )


def _require_drawable(row: dict[str, Any], manifest: Path) -> None:
    """Raises UserError unless a manifest's row says how its picture was drawn."""
    names = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
    names |= {"scheduler": "scheduler", "seed": "seed"}
    try:
        SampleConfig(**{flag: row.get(name) for flag, name in names.items()})
        known = row["steps"] is not None and row["guidance"] is not None
    except (UserError, KeyError):
        known = False
    hint = "which --wasserstein needs; draw the pictures again"
    require(known, f"{manifest}: does not say how {row['file']} was drawn, {hint}")


def require_same_prompts(samples: list[Samples]) -> None:
    """Raises UserError unless all folders have as many pictures of each prompt.

    Otherwise their means could not be compared.
    """
    first = samples[0]
    for other in samples[1:]:
        require(
            Counter(first.prompts) == Counter(other.prompts),
            f"--pick: {first.folder} and {other.folder} are of different prompts; "
            "draw the same for each",
        )


def read_manifest(path: Path) -> tuple[dict[str, Any], ...]:
    """The rows of a manifest. Raises UserError if one is broken, or its picture is not there."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError(path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{path}: no readable manifest; name a folder that test_eqdiff.py wrote"
        ) from None

    rows = []
    for number, line in enumerate(lines, start=1):
        row = _read_row(line)
        require(
            row is not None,
            f"{path}, line {number}: broken, it must name file and prompt; draw the pictures again",
        )
        file = path.parent / row["file"]
        require(
            file.is_file(),
            f"{file}: the manifest names it, and it is not there; draw the pictures again",
        )
        rows.append(row)

    require(rows, f"{path}: it names no picture; draw some with: bash scripts/test.sh")
    return tuple(rows)


def _read_row(line: str) -> dict[str, Any] | None:
    """A line of a manifest; None if it does not name a prompt and a file in its folder."""
    try:
        row = json.loads(line)
        known = _is_text(row["prompt"]) and _is_inside(row["file"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return row if known else None


def concept_of(folder: Path, row: dict[str, Any]) -> Path | None:
    """The concept file that a manifest's row names; None if it is not there."""
    named = row.get("concept_file")
    path = Path(found_path(named, folder)) if named and _is_text(named) else None
    return path if path and path.is_file() else None


def config_near(folder: Path, concept: Path | None) -> Path | None:
    """The config.json beside the concept.

    It lies one folder up from samples/, three up from a checkpoint's. None if it is not there.
    """
    parents = [*(concept.parents[:3] if concept else ()), *folder.resolve().parents[:3]]
    files = [parent / "config.json" for parent in parents]
    return next((file for file in files if file.is_file()), None)


def _settings_near(folder: Path, concept: Path | None) -> dict[str, Any]:
    """What `config_near` finds, its paths as they are here; {} if there is none.

    Raises UserError if it cannot be read, or a setting in it is of the wrong kind.
    """
    file = config_near(folder, concept)
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: not readable ({error}); restore it, or move the samples elsewhere"
        ) from None

    require(
        isinstance(settings, dict),
        f"{file}: not an object; restore it, or move the samples elsewhere",
    )
    for name in ("instance_data_dir", "class_word", "pretrained_model_name_or_path"):
        fits = settings.get(name) is None or _is_text(settings[name])
        require(fits, f"{file}: its {name} is no text; restore it, or move the samples elsewhere")

    for name in ("instance_data_dir", "pretrained_model_name_or_path"):
        if file and settings.get(name):
            settings[name] = found_path(settings[name], file.parent)
    return settings


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not STRANGE.search(value)


def _is_inside(name: str) -> bool:
    """Whether a manifest's path stays in its folder."""
    path = PurePath(name)
    return _is_text(name) and not path.is_absolute() and ".." not in path.parts
