"""One cell of a study: teach one subject by one variant from one seed, draw the prompts, measure the pictures."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqdiff.base import Base
from eqdiff.pipeline import EqDiffPipeline, seed_of
from studies.variants import Study, prompts
from toybox.instances import instance
from toybox.make_subjects import write_subject
from toybox.quality import draw_prompts
from toybox.truth import truth_features
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "outputs" / "studies"  # concepts and subjects: made again if they are gone
TABLE = "test"
FIRST_TRUTH = 50_000  # seed of the first drawn picture that an image is compared with
# torchrun's words to this process, which a training started from here must not hear
RANK_WORDS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Cell:
    study: str
    variant: str
    class_name: str
    index: int  # in the test table
    seed: int

    @property
    def subject(self) -> str:
        return f"{self.class_name}_{self.index}"

    @property
    def file(self) -> Path:
        words = "".join(c if c.isalnum() or c in ".-" else "_" for c in self.variant)
        return ROOT / "studies" / self.study / "cells" / f"{words}--{self.subject}--{self.seed}.json"


def photos(cell: Cell) -> Path:
    """The folder with the subject's photos, drawn if it is not there."""
    folder = WORK / "subjects" / cell.subject
    if not (folder / "instance.json").exists():
        write_subject(folder, TABLE, cell.class_name, cell.index, first=7000)
    return folder


def concept(cell: Cell, flags: tuple[str, ...], base: Base) -> Path:
    """The trained concept of the cell, by the real command line; equal flags are trained once for all studies."""
    about = (base.fingerprint, flags, cell.subject, cell.seed)
    folder = WORK / "concepts" / hashlib.sha256(repr(about).encode()).hexdigest()[:16]
    file = folder / "concept.safetensors"
    if file.exists():
        return file
    words = ["--pretrained_model_name_or_path", base.name, "--preset", "toybox", "--seed", str(cell.seed)]
    words += ["--instance_data_dir", str(photos(cell)), "--output_dir", str(folder), "--validation_steps", "0"]
    told = {name: value for name, value in os.environ.items() if name not in RANK_WORDS}
    command = [sys.executable, str(ROOT / "train_eqdiff.py"), *words, *flags]
    done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{cell.file.stem}: training failed\n{done.stderr[-2000:]}")
    return file


def run(cell: Cell, study: Study, base: Base, instruments: Any) -> None:
    """Writes the cell's file: settings, the base's hash and a row a prompt."""
    flags, asked = study.variants[cell.variant], prompts()
    pipe = EqDiffPipeline.of(base)
    pipe.load_concept(str(concept(cell, flags, base)))
    try:
        texts = [prompt.text for prompt in asked]
        seeds = [seed_of(0, text, 0) for text in texts]  # the same in all cells
        images = draw_prompts(pipe, texts, seeds, **study.draw.get(cell.variant, {}))
    finally:
        pipe.unload_concept()
    scores = instruments.scores(images, asked, cell.class_name, photos(cell))
    said, features = instruments.judges.name(images), instruments.judges.identity(images)
    who, rows = instance(TABLE, cell.class_name, cell.index), []
    for n, prompt in enumerate(asked):
        row: dict[str, Any] = {"prompt": prompt.text, "kind": prompt.kind}
        row |= {name: float(values[n]) for name, values in scores.items()}
        truth = truth_features(who, prompt.context, prompt.style, FIRST_TRUTH + 100 * n, instruments.judges)
        row["identity"] = float((features[n] @ truth.T).mean())
        row["context"] = int(said["context"][n]) == CONTEXT_NAMES.index(prompt.context)
        row["style"] = int(said["style"][n]) == STYLE_NAMES.index(prompt.style)
        rows.append(row)
    about = {"study": cell.study, "variant": cell.variant, "subject": cell.subject, "seed": cell.seed}
    about |= {"base": base.fingerprint, "flags": flags, "draw": study.draw.get(cell.variant, {}), "rows": rows}
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    beside = cell.file.with_suffix(".partial")
    beside.write_text(json.dumps(about, indent=1) + "\n")
    os.replace(beside, cell.file)
