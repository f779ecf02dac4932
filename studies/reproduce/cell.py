"""One cell: a method teaches a base one subject from one seed; its pictures are measured.

A cell is pure. What it depends on is in its key; it is run by the real command lines in a process
of its own, `python -m studies.reproduce.cell CELL.json FOLDER`, with a fixed number of threads. The
folder then holds training/, samples/ and row.json.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eqdiff.errors import main_guard
from eqdiff.files import replacing
from eqdiff.settings.options import Role, names_of
from eqdiff.settings.presets import parse
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.train import TrainConfig
from studies.reproduce.code import code_mark
from studies.scripts import run_script

ROW = "row.json"
# where in its folder
CONCEPT, IMAGES = "training/concept.safetensors", "samples/images"
LENT = "lent.json"  # beside a concept of another cell: how long its training took
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
# what a training or a drawing is told that does not change what comes of it
TOLD = ("--validation_steps", "0", "--report_to", "none", "--checkpointing_steps", "0")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """All that a cell depends on, and where that lies on this machine.

    base, clip, dino: folders or hub ids; the digests are of their weights. photos: the prepared
    folder of the subject. train, draw: flags of train_eqdiff.py and test_eqdiff.py. prompts: (text,
    kind) pairs, kind "plain" or "style". images: pictures a prompt. precision: None for the
    machine's own.
    """

    base: str
    base_digest: str
    clip: str
    dino: str
    eyes_digest: str
    subject: str
    subject_digest: str
    class_word: str
    photos: str
    train: tuple[str, ...]
    draw: tuple[str, ...]
    seed: int
    prompts: tuple[tuple[str, str], ...]
    images: int
    threads: int
    precision: str | None = None

    @cached_property
    def key(self) -> str:
        """16 hex digits of what decides the result; places, threads and precision do not."""
        return _digest(
            {
                **self._training,
                "eyes": self.eyes_digest,
                "draw": changed(SampleConfig, self.draw),
                "prompts": self.prompts,
                "images": self.images,
            }
        )

    @cached_property
    def training_key(self) -> str:
        """The same of what decides its concept alone: cells that draw otherwise share it."""
        return _digest(self._training)

    @cached_property
    def _training(self) -> dict[str, Any]:
        return {
            "base": self.base_digest,
            "subject": [self.subject_digest, self.class_word],
            "train": changed(TrainConfig, self.train),
            "seed": self.seed,
        }

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Cell":
        """The inverse of `dataclasses.asdict`, also after JSON."""
        lists = {name: tuple(facts[name]) for name in ("train", "draw")}
        prompts = tuple((text, kind) for text, kind in facts["prompts"])
        return cls(**{**facts, **lists, "prompts": prompts})


def key_with(row: Row, train: Sequence[str], draw: Sequence[str]) -> str:
    """The key that a row's cell would have with other flags.

    A row whose own key that is was made with what these flags mean, whatever its own flags say: a
    preset that they rely on may have changed since.
    """
    facts = {field.name: row[field.name] for field in dataclasses.fields(Cell) if field.name in row}
    return Cell.of({**facts, "train": train, "draw": draw}).key


def _digest(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed(cls: type, words: Sequence[str]) -> dict[str, Any]:
    """The settings that flags change from the defaults, as JSON has them.

    Two ways to say the same give the same. Places, and what a user may change freely in a resumed
    training, do not count, unless the model card lists it.
    """
    return json.loads(_changed(cls, tuple(words)))


@cache
def _changed(cls: type, words: tuple[str, ...]) -> str:
    given = parse(cls, list(words))
    settings = json.loads(json.dumps(dataclasses.asdict(given)))
    usual = json.loads(json.dumps(dataclasses.asdict(cls())))
    idle = {*names_of(cls, Role.PLACE), *names_of(cls, Role.FREE), "preset"}
    counting = settings.keys() - (idle - {*names_of(cls, Role.CARD)}) - {"preset"}
    found = {name: settings[name] for name in sorted(counting) if settings[name] != usual[name]}
    return json.dumps(found)


def training_words(cell: Cell, folder: Path) -> list[str]:
    """The command line of train_eqdiff.py that trains a cell into folder/training."""
    words = ["--pretrained_model_name_or_path", cell.base, "--instance_data_dir", cell.photos]
    words += ["--class_word", cell.class_word, "--output_dir", str(folder / "training")]
    return [*words, "--seed", str(cell.seed), *TOLD, *_precision(cell), *cell.train]


def _precision(cell: Cell) -> tuple[str, ...]:
    return ("--mixed_precision", cell.precision) if cell.precision else ()


def drawing_words(cell: Cell, folder: Path) -> list[str]:
    """The command line of test_eqdiff.py that draws its prompts into folder/samples."""
    words = ["--pretrained_model_name_or_path", cell.base]
    words += ["--concept", str(folder / CONCEPT)]
    words += ["--output_dir", str(folder / "samples"), "--no-safety_checker"]
    words += ["--num_images_per_prompt", str(cell.images), *_precision(cell), *cell.draw]
    return [*words, "--prompt", *(text for text, _ in cell.prompts)]


def run(cell: Cell, folder: Path) -> Row:
    """Trains, draws and measures a cell in a folder; its row."""
    import torch  # heavy: this file is read by those who only need keys

    from studies.reproduce.facts import facts_of
    from studies.reproduce.measures import instance_in, measured

    torch.set_num_threads(cell.threads)
    lent = json.loads(_text(folder / LENT)) if (folder / LENT).is_file() else {}
    times = [_now()]
    if not lent:
        run_script("train_eqdiff.py", training_words(cell, folder))
    times.append(_now())
    run_script("test_eqdiff.py", drawing_words(cell, folder))
    times.append(_now())

    manifest = _text(folder / "samples" / "manifest.jsonl")
    drawn = [json.loads(line) for line in manifest.splitlines()]
    for fact in drawn:
        fact["file"] = Path(fact["file"]).name
    rows = measured(cell, drawn, folder / IMAGES)
    is_toybox = instance_in(Path(cell.photos)) is not None
    known = facts_of(cell.base, is_toybox, cell.class_word, folder / CONCEPT)
    times.append(_now())
    facts = dataclasses.asdict(cell)
    for place in ("photos", "base", "clip", "dino"):
        facts[place] = Path(facts[place]).name  # a row is passed on: no path of this machine
    return {
        "key": cell.key,
        "code": code_mark(),
        **facts,
        "device": _device(),
        "versions": {name: version(name) for name in LIBRARIES},
        **_spans(times, lent),
        "known": known,
        "pictures": {path.name: digest_of_file(path) for path in _pictures(folder)},
        "rows": rows,
    }


def _now() -> tuple[float, float]:
    """Seconds of the clock, and of this process on its processors."""
    return time.monotonic(), time.process_time()


def _spans(
    times: Sequence[tuple[float, float]], lent: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Seconds of training, drawing and measuring: by the clock, and of a processor.

    The second do not grow where other processes run beside a cell of one thread. lent: those of the
    training that another cell had.
    """
    spans: dict[str, dict[str, float]] = {}
    for name, moments in zip(("seconds", "cpu_seconds"), zip(*times, strict=True), strict=True):
        parts = [round(end - start, 2) for start, end in zip(moments, moments[1:], strict=False)]
        spans[name] = dict(zip(("train", "draw", "measure"), parts, strict=True))
        spans[name]["train"] = lent.get(name, spans[name]["train"])
    return spans


def digest_of_file(file: Path) -> str:
    """The SHA-256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _pictures(folder: Path) -> list[Path]:
    return sorted((folder / IMAGES).glob("*.png"))


def _device() -> str:
    """What the cell ran on: the GPU's name, or cpu."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


@main_guard
def main(argv: Sequence[str]) -> None:
    """Runs the cell of a JSON file in a folder, and writes its row there."""
    file, folder = (Path(word) for word in argv)
    cell = Cell.of(json.loads(file.read_text(encoding="utf-8")))
    row = run(cell, folder)
    with replacing(folder / ROW) as beside:
        beside.write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
