"""What is to be measured: the settings of eval_eqdiff.py, and folders of drawn pictures with their subject's facts."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

from eqdiff.config import ASSETS, UserError, is_bundled, resolve_base
from eqdiff.options import check_fields, opt, require
from eqdiff.prompts import STRANGE

CLIP_MODEL, DINO_MODEL = "openai/clip-vit-base-patch32", "facebook/dino-vits16"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Measure drawn pictures against their prompts and the subject's photos: CLIP-T, CLIP-I, DINO-I."""

    samples: tuple[str, ...] = opt((), "folders that test_eqdiff.py wrote (default: the newest outputs/*/samples)")
    instance_data_dir: str | None = opt(None, "the subject's photos (default: those that the concept was trained on)")
    class_word: str | None = opt(None, "what the subject is (default: as the concept was trained)")
    clip_model: str | None = opt(None, f"CLIP, folder or hub id (default: {CLIP_MODEL}; on the toybox base its own)")
    dino_model: str | None = opt(None, f"ViT by DINO, folder or hub id (default: {DINO_MODEL}; likewise)")
    pick: bool = opt(False, "the folders are checkpoints of one subject: draw the curve of the metrics, name the best")
    json: str | None = opt(None, "write the figures of all folders there too")
    batch_size: int = opt(32, "pictures looked at together", 1)

    def __post_init__(self) -> None:
        check_fields(self)
        require(not self.pick or len(self.samples) > 1, "--pick: name two or more folders with --samples")


@dataclasses.dataclass(frozen=True)
class Samples:
    """A folder of drawn pictures. rows: the manifest's; step: of the training that drew them, None if not known."""

    folder: Path
    rows: tuple[dict[str, Any], ...]
    photos: Path
    class_word: str
    base: str
    step: int | None

    @property
    def files(self) -> list[Path]:
        return [self.folder / row["file"] for row in self.rows]

    @property
    def prompts(self) -> list[str]:
        return [row["prompt"] for row in self.rows]


def find_samples(named: tuple[str, ...]) -> list[Path]:
    """The folders with a manifest: those named, or samples/ in them; without a name the newest under outputs/."""
    if named:
        inner = [Path(name) / "samples" for name in named]
        return [Path(n) if not (i / "manifest.jsonl").is_file() else i for n, i in zip(named, inner, strict=True)]
    found = sorted(Path("outputs").glob("*/samples/manifest.jsonl"), key=lambda path: path.stat().st_mtime)
    require(found, "no samples under outputs/; draw some with: bash scripts/test.sh, or name a folder with --samples")
    return [found[-1].parent]


def read_samples(folder: Path, config: EvalConfig) -> Samples:
    """A folder's manifest, and the facts of its subject from the config.json that training left near it.

    UserError: no manifest or a broken one, a picture that is not there, photos or class word not known.
    """
    rows = _read_manifest(folder / "manifest.jsonl")
    settings = _settings_near(folder)
    photos = config.instance_data_dir or settings.get("instance_data_dir")
    require(photos, f"{folder}: no config.json near it says which photos it is of; name them with --instance_data_dir")
    note = Path(photos) / "class.txt"
    text = note.read_text(encoding="utf-8", errors="replace") if note.is_file() else ""
    word = config.class_word or settings.get("class_word") or " ".join(text.split())
    require(word, f"{folder}: what it shows is not known: give --class_word, e.g. --class_word 'cat toy'")
    base = resolve_base(settings.get("pretrained_model_name_or_path"))
    numbers = re.findall(r"step-(\d+)", str(folder.resolve()))
    step = int(numbers[-1]) if numbers else settings.get("max_train_steps")
    return Samples(folder, rows, Path(photos), word, base, step)


def judge_names(config: EvalConfig, samples: list[Samples]) -> tuple[str, str]:
    """CLIP and DINO: those named, else the toybox's if its base drew every folder, else the protocol's."""
    toy = all(is_bundled(part.base) for part in samples)
    clip, dino = (ASSETS / "toybox" / name for name in ("clip", "dino"))
    return (
        config.clip_model or (str(clip) if toy else CLIP_MODEL),
        config.dino_model or (str(dino) if toy else DINO_MODEL),
    )


def require_same_prompts(samples: list[Samples]) -> None:
    """UserError unless all folders have as many pictures of each prompt: else their means cannot be compared."""
    first = samples[0]
    for other in samples[1:]:
        same = Counter(first.prompts) == Counter(other.prompts)
        require(same, f"--pick: {first.folder} and {other.folder} are of different prompts; draw the same for each")


def _read_manifest(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: no readable manifest; name a folder that test_eqdiff.py wrote") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            file, known = path.parent / row["file"], _is_text(row["prompt"]) and _is_inside(row["file"])
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        require(known, f"{path}, line {number}: broken, it must name file and prompt; draw the pictures again")
        require(file.is_file(), f"{file}: the manifest names it, and it is not there; draw the pictures again")
        rows.append(row)
    require(rows, f"{path}: it names no picture; draw some with: bash scripts/test.sh")
    return tuple(rows)


def _settings_near(folder: Path) -> dict[str, Any]:
    """config.json beside the concept: one folder up from samples/, three up from a checkpoint's. Empty: none there."""
    files = [parent / "config.json" for parent in folder.resolve().parents[:3]]
    file = next((file for file in files if file.is_file()), None)
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable ({error}); restore it, or move the samples elsewhere") from None
    require(isinstance(settings, dict), f"{file}: not an object; restore it, or move the samples elsewhere")
    for name in ("instance_data_dir", "class_word", "pretrained_model_name_or_path"):
        fits = settings.get(name) is None or _is_text(settings[name])
        require(fits, f"{file}: its {name} is no text; restore it, or move the samples elsewhere")
    return settings


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not STRANGE.search(value)


def _is_inside(name: str) -> bool:
    """Whether a manifest's path stays in its folder."""
    path = PurePath(name)
    return _is_text(name) and not path.is_absolute() and ".." not in path.parts
