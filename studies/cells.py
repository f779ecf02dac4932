"""One cell of a study: teach one subject by one variant from one seed, draw the prompts, measure the pictures."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eqdiff.base import Base
from eqdiff.checkpoint import newest
from eqdiff.config import TrainConfig, parse, preset_config
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.run_folder import CHECKPOINTS
from eqdiff.running import FolderTaken, locked
from eqdiff.setup import PATHS
from studies.instruments import FIRST_TRUTH
from studies.variants import Study, prompts
from toybox.dataset import to_tensor
from toybox.instances import instance
from toybox.make_subjects import write_subject
from toybox.quality import draw_prompts
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "outputs" / "studies"  # concepts and subjects: made again if they are gone
POLL = 0.5  # seconds between looks at a lock
# torchrun's words to this process, which a training started from here must not hear
RANK_WORDS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Cell:
    study: str
    variant: str
    class_name: str
    index: int  # in the table
    seed: int
    table: str = "test"

    @property
    def subject(self) -> str:
        return f"{self.class_name}_{self.index}"

    @property
    def file(self) -> Path:
        words = "".join(c if c.isalnum() or c in ".-" else "_" for c in self.variant)
        return ROOT / "studies" / self.study / "cells" / f"{words}--{self.subject}--{self.seed}.json"


@contextmanager
def claimed(cell: Cell) -> Iterator[bool]:
    """Whether the cell is this process's to run: it is not done and no other is at it. A killed one lets it go."""
    with ExitStack() as stack:
        try:
            stack.enter_context(_lock(f"{cell.study}/{cell.file.stem}"))
        except FolderTaken:
            yield False
            return
        yield not cell.file.exists()


@contextmanager
def in_turn(name: str) -> Iterator[None]:
    """What one process at a time may do: the others wait, whichever study they are of."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_lock(name))
                break
            except FolderTaken:
                time.sleep(POLL)
        yield


def _lock(name: str) -> AbstractContextManager[None]:
    folder = WORK / "claims" / name
    folder.mkdir(parents=True, exist_ok=True)  # stays, or one could go while another process is about to lock it
    return locked(folder)


def photos(cell: Cell) -> Path:
    """The folder with the subject's photos, drawn if it is not there."""
    folder = WORK / "subjects" / cell.table / cell.subject
    if not (folder / "instance.json").exists():
        write_subject(folder, cell.table, cell.class_name, cell.index, first=7000)
    return folder


def settings_of(flags: tuple[str, ...], seed: int) -> dict[str, Any]:
    """What a training by these flags has other than the preset, so that two ways to say the same are one training."""
    plain = dataclasses.asdict(preset_config("toybox"))
    config = dataclasses.asdict(parse(TrainConfig, ["--preset", "toybox", "--seed", str(seed), *flags]))
    return {n: value for n, value in config.items() if n not in (*PATHS, "preset") and value != plain[n]}


def concept(cell: Cell, flags: tuple[str, ...], base: Base) -> Path:
    """The trained concept of the cell; equal settings are trained once for all studies and processes."""
    about = (base.fingerprint, sorted(settings_of(flags, cell.seed).items()), cell.table, cell.subject)
    key = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
    file = WORK / "concepts" / key / "concept.safetensors"
    with in_turn(f"concepts/{key}"):
        if not file.exists():
            train(cell, flags, base, file.parent)
    return file


def train(cell: Cell, flags: tuple[str, ...], base: Base, folder: Path) -> None:
    """By the real command line; a training that was stopped goes on. RuntimeError: it failed."""
    words = ["--pretrained_model_name_or_path", base.name, "--preset", "toybox", "--seed", str(cell.seed)]
    words += ["--instance_data_dir", str(photos(cell)), "--output_dir", str(folder), "--validation_steps", "0"]
    words += ["--report_to", "none"]
    words += ["--resume_from_checkpoint", "latest"] if newest(folder / CHECKPOINTS) else ["--overwrite"]
    told = {name: value for name, value in os.environ.items() if name not in RANK_WORDS}
    command = [sys.executable, str(ROOT / "train_eqdiff.py"), *words, *flags]
    done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{cell.file.stem}: training failed\n{done.stderr[-2000:]}")


def drawn(cell: Cell, file: Path, how: dict[str, float], base: Base) -> Tensor:
    """Pictures of the prompts by a concept file; the seeds are the same in all cells."""
    texts = [prompt.text for prompt in prompts()]
    pipe = EqDiffPipeline.of(base)
    pipe.load_concept(str(file))
    try:
        return draw_prompts(pipe, texts, [seed_of(0, text, 0) for text in texts], **how)
    finally:
        pipe.unload_concept()


def drawn_truth(cell: Cell) -> Tensor:
    """What the prompts ask for, drawn by the toybox itself, in poses that are not those of the ground truth."""
    who, first = instance(cell.table, cell.class_name, cell.index), FIRST_TRUTH + 50 + cell.seed
    scenes = [Scene(who, prompt.context, prompt.style, first + 100 * n) for n, prompt in enumerate(prompts())]
    return to_tensor(np.stack([draw(scene).image for scene in scenes]))


def measured(images: Tensor, cell: Cell, instruments: Any) -> list[dict[str, Any]]:
    """A row a prompt: the metrics, identity with the truth, and whether context and style are those asked for."""
    scores = instruments.scores(images, prompts(), cell.class_name, photos(cell))
    said, features = instruments.judges.name(images), instruments.judges.identity(images)
    truth, rows = instruments.truths(cell.table, cell.class_name, cell.index), []
    for n, prompt in enumerate(prompts()):
        row: dict[str, Any] = {"prompt": prompt.text, "kind": prompt.kind}
        row |= {name: float(values[n]) for name, values in scores.items()}
        row["identity"] = float((features[n] @ truth[n].T).mean())
        row["context"] = int(said["context"][n]) == CONTEXT_NAMES.index(prompt.context)
        row["style"] = int(said["style"][n]) == STYLE_NAMES.index(prompt.style)
        rows.append(row)
    return rows


def rows_of(cell: Cell, study: Study, base: Base, instruments: Any) -> list[dict[str, Any]]:
    """The cell's figures; a concept that another study has drawn in the same way is not drawn again."""
    flags, how = study.variants[cell.variant], study.draw.get(cell.variant, {})
    if flags is None:
        return measured(drawn_truth(cell), cell, instruments)
    file = concept(cell, flags, base)
    known = file.with_name("rows" + "".join(f"-{name}-{how[name]:g}" for name in sorted(how)) + ".json")
    if not known.exists():
        write_json(known, measured(drawn(cell, file, how, base), cell, instruments))
    return json.loads(known.read_text())


def run(cell: Cell, study: Study, base: Base, instruments: Any) -> None:
    """Writes the cell's file: settings, the base's hash and a row a prompt."""
    about: dict[str, Any] = {n: getattr(cell, n) for n in ("study", "variant", "table", "subject", "seed")}
    about |= {"base": base.fingerprint, "flags": study.variants[cell.variant]}
    about["draw"] = study.draw.get(cell.variant, {})
    write_json(cell.file, about | {"rows": rows_of(cell, study, base, instruments)})


def write_json(path: Path, what: Any) -> None:
    """Beside, then renamed: who reads sees nothing or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    beside.write_text(json.dumps(what, indent=1) + "\n")
    os.replace(beside, path)
