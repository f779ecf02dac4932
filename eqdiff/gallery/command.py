"""The command lines that a run was, told from what it left; no absolute path is in them."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from eqdiff.gallery.found import Row, Run
from eqdiff.settings.places import ASSETS, found_path, is_bundled, told_path
from eqdiff.settings.presets import METHOD_PRESETS, PRESETS
from eqdiff.settings.prompts import read_prompts
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.sampling import OPTIONS
from eqdiff.settings.train import TrainConfig
from eqdiff.wording import clean

BASE = "pretrained_model_name_or_path"
# settings that the words of the command say, or that are no part of what was trained
SAID = {"instance_data_dir", "class_word", BASE, "output_dir", "preset"}
SAID |= {"resume_from_checkpoint", "overwrite"}
# what a row of the manifest calls the settings of a drawing
DRAWN = {"steps": "num_inference_steps", "guidance": "guidance_scale", "run_seed": "seed"}
SAME = ("scheduler", "negative_prompt", "height", "width", "rra", "reference", "num_references")
SAME += ("attention_window", "reference_for", "reference_strength", "guidance_rescale")


def training_command(run: Run) -> str:
    """What trained the run: `bash scripts/train.sh ...`; "" if config.json is not there."""
    settings = run.settings
    if run.training is None:
        return ""
    photos = _told(settings.get("instance_data_dir"), run.training)
    words = ["bash", "scripts/train.sh", photos, str(settings.get("class_word") or "")]
    words += _base(run)

    preset = settings.get("preset")
    presets = METHOD_PRESETS.get(str(settings.get("method", "eqdiff")), PRESETS)
    named = isinstance(preset, str) and preset in presets
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    defaults |= presets[preset] if named else {}
    words += ["--preset", preset] if named else []
    for name, default in defaults.items():
        if name in settings and name not in SAID and not _same(settings[name], default):
            words += _flag(name, settings[name])
    return _joined([*words, "--output_dir", _told(str(run.training.resolve()), run.training)])


def drawing_command(run: Run, row: Row | None = None) -> str:
    """What drew the run's pictures, or the one of `row`: `bash scripts/test.sh ...`.

    "" if there are none, or if their rows are of a version that did not tell enough.
    """
    rows = [row] if row else list(run.rows)
    if not rows or "run_seed" not in rows[0] or run.samples is None:
        return ""
    first = rows[0]
    if "+" in str(first.get("concept")):  # of several concepts the rows name the first alone
        return ""
    concept = first.get("concept_file")
    concept = _told(concept, run.samples) if isinstance(concept, str) else "CONCEPT"
    words = ["bash", "scripts/test.sh", concept, *_base(run)]
    words += _prompts(list(dict.fromkeys(each["prompt"] for each in rows)))
    most = max(each["number"] for each in rows if isinstance(each.get("number"), int))
    words += ["--num_images_per_prompt", str(most + 1)] if most else []

    defaults = {field.name: field.default for field in dataclasses.fields(SampleConfig)}
    given = {flag: first.get(name) for name, flag in DRAWN.items()}
    given |= {name: first.get(name) for name in SAME}
    resolution = run.settings.get("resolution")
    usual = {"negative_prompt": "", "height": resolution, "width": resolution}
    usual |= {"reference": _first_photo(run), "num_references": run.settings.get("num_references")}
    for name, value in given.items():
        if not _same(value, defaults[name]) and not _same(value, usual.get(name)):
            words += _flag(name, value)
    return _joined([*words, *_options(first, defaults)])


def _options(row: Row, defaults: dict[str, Any]) -> list[str]:
    """The flags of the sampling options that a row tells of."""
    words: list[str] = []
    for name, fields in OPTIONS.items():
        told = row.get(name)
        if not isinstance(told, dict):
            continue
        words.append(f"--{name}")
        for field, setting in fields.items():
            if not _same(told.get(field), defaults[setting]):
                words += _flag(setting, told.get(field))
    return words


def _first_photo(run: Run) -> str | None:
    return run.photos[0].name if run.photos else None


def _base(run: Run) -> list[str]:
    """The flag that names the base, where it is not the bundled one."""
    named = run.settings.get(BASE)
    if not isinstance(named, str) or run.training is None:
        return []
    if is_bundled(found_path(named, run.training)):
        return []
    return [f"--{BASE}", _told(named, run.training)]


def _prompts(prompts: list[str]) -> list[str]:
    """The words that give these prompts: a bundled file that has just them, or each of them."""
    for file in sorted((ASSETS / "prompts").glob("*.txt")):
        if list(read_prompts(file)) == prompts:
            return ["--prompts", f"assets/prompts/{file.name}"]
    return ["--prompt", *prompts]


def _told(place: Any, folder: Path) -> str:
    """A place that a file in `folder` tells, as it is told from the working folder."""
    return told_path(found_path(place, folder), Path()) if isinstance(place, str) else ""


def _flag(name: str, value: Any) -> list[str]:
    """A setting as the command line spells it; nothing for None."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]


def _same(value: Any, default: Any) -> bool:
    """Whether a value of a JSON file is this one."""
    return value == (list(default) if isinstance(default, tuple) else default)


def _joined(words: list[str]) -> str:
    """The words as a shell takes them; `~/` stays what a shell opens."""
    quoted = [
        f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)
        for word in words
    ]
    return clean(" ".join(quoted))
