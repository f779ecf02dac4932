"""What a form says -> command lines of the root scripts. Free text is one word behind its "="."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eqdiff.errors import require
from eqdiff.settings.options import build_parser, names_of
from eqdiff.settings.presets import PRESETS, parse
from eqdiff.settings.prompts import require_slot
from eqdiff.settings.sample import SampleConfig, jobs_of
from eqdiff.settings.train import PLACE, TrainConfig

BASE = "pretrained_model_name_or_path"
# what the folded settings must not say: places on the server, and what the form says itself
CLOSED = {*names_of(TrainConfig, PLACE), "overwrite", "class_word", "report_to"}


def flags_of(values: Mapping[str, Any]) -> list[str]:
    """Settings as words; None and "" are left out, and free text cannot pass for a flag."""
    words = []
    for name, value in values.items():
        if value is None or value == "":
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(f"--{name}={text}")
    return words


def masks_command(photos: Path, word: str) -> list[str]:
    """Makes the masks that a subject's photos lack."""
    given = {"instance_data_dir": photos.as_posix(), "class_word": word or "thing"}
    return ["make_masks.py", *flags_of(given)]


def train_command(
    photos: Path, word: str, output: Path, settings: Mapping[str, Any], more: str, base: str | None
) -> list[str]:
    """Trains a subject. more: further flags, as a person writes them.

    Raises UserError if a value is bad, or a further flag is not open here.
    """
    require(word.strip(), "the class word is missing; say what the subject is")
    given = {"instance_data_dir": photos.as_posix(), "class_word": word.strip(), BASE: base}
    given |= {"output_dir": output.as_posix(), **settings, "report_to": "none"}
    words = [*flags_of(given), *_further(more)]
    parse(TrainConfig, words)
    return ["train_eqdiff.py", *words]


def resumed(words: Sequence[str]) -> list[str]:
    """The same training from its newest checkpoint."""
    return [*words, "--resume_from_checkpoint=latest"]


def draw_command(
    concept: Path,
    prompts: Sequence[str],
    output: Path,
    settings: Mapping[str, Any],
    base: str | None,
) -> list[str]:
    """Draws prompts. Raises UserError if a value is bad or a prompt has no {}."""
    given = {"concept": concept.as_posix(), BASE: base, "output_dir": output.as_posix()}
    words = [*flags_of(given), *(f"--prompt={text}" for text in prompts), *flags_of(settings)]
    config = parse(SampleConfig, words)
    require(prompts, "no prompt; write one, with {} where the subject goes")
    require(len(jobs_of(config, "")) <= 200, "over 200 pictures; draw them in the terminal")
    return ["test_eqdiff.py", *words]


def compare_commands(
    concepts: Mapping[str, Path], prompts: Sequence[str], into: Path, number: int, base: str | None
) -> list[list[str]]:
    """Draws the same prompts with the same seeds by each concept, writes a page, measures.

    The page is written before and after: where nothing can be measured it has no marks.
    """
    require(concepts, "no concept is chosen; take one or more")
    folders = [into / f"{i}-{path.parent.name}" for i, path in enumerate(concepts.values())]
    settings = {"num_images_per_prompt": number, "gallery": False}
    drawings = [
        draw_command(path, prompts, folder, settings, base)
        for path, folder in zip(concepts.values(), folders, strict=True)
    ]
    names = [folder.as_posix() for folder in folders]
    page = ["make_gallery.py", "--runs", *names, f"--output={(into / 'gallery.html').as_posix()}"]
    return [*drawings, page, ["eval_eqdiff.py", "--samples", *names], page]


def inside_commands(concept: Path, into: Path, prompt: str) -> list[list[str]]:
    """Looks at the gate and the reference attention, and at what each band's embedding draws.

    The prompt goes into a file in `into`. Raises UserError if it has no {}.
    """
    text = prompt.strip()
    require_slot("the prompt", text)
    require("\n" not in text and not text.startswith("#"), "one prompt, in one line")
    prompts = into / "prompts.txt"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text(text + "\n", encoding="utf-8")

    place, file = into.as_posix(), concept.as_posix()
    gate = ["-m", "studies.insides.gate", file, "--picture", f"{place}/gate.png"]
    bands = ["-m", "studies.insides.bands", file, "--picture", f"{place}/bands.png"]
    return [
        [*gate, "--json", f"{place}/gate.json"],
        [*bands, "--prompts", prompts.as_posix()],
    ]


def _further(more: str) -> list[str]:
    """The words of further flags. Raises UserError if they cannot be read or are closed here."""
    try:
        words = shlex.split(more or "")
    except ValueError as error:
        require(False, f"further settings: {error}; close what you opened")
    given = vars(build_parser(TrainConfig, PRESETS).parse_args(words))
    closed = sorted(CLOSED & given.keys())
    require(not closed, f"--{closed[0] if closed else ''}: not from the page; use the terminal")
    return words
