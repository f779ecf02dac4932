"""One cell of a study: one variant teaches one subject from one seed; its pictures are measured."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eqdiff.base.load import Base
from eqdiff.files import replacing
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.groups import PLACE
from eqdiff.settings.options import names_of
from eqdiff.settings.presets import parse, preset_config
from eqdiff.settings.train import TrainConfig
from eqdiff.training.checkpoint import newest
from eqdiff.training.folder import CHECKPOINTS
from studies.ablation import store
from studies.ablation.code import code_mark
from studies.ablation.instruments import FIRST_TRUTH
from studies.ablation.variants import Study, prompts
from toybox.dataset import to_tensor
from toybox.instances import instance
from toybox.make_subjects import write_subject
from toybox.quality import draw_prompts
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw

FIRST_PHOTO = 7000  # seed of a subject's first photo


@dataclass(frozen=True)
class Cell:
    """A study, a variant, a subject of a table and a seed."""

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
    def key(self) -> store.Key:
        return self.variant, self.subject, self.seed

    @property
    def name(self) -> str:
        """The cell in words that a file name may hold."""
        variant = "".join(c if c.isalnum() or c in ".-" else "_" for c in self.variant)
        return f"{self.study}/{variant}--{self.subject}--{self.seed}"


def keys_done(study: str) -> set[store.Key]:
    """The keys of the cells that are in the study's file."""
    return {store.key_of(row) for row in store.read_cells(store.cells_file(study))}


def photos(cell: Cell) -> Path:
    """The folder with the subject's photos, which are drawn if they are not there."""
    place = f"subjects/{cell.table}/{cell.subject}"
    folder = store.WORK / place
    with store.in_turn(place):  # nobody reads photos that another process is writing
        if not (folder / "instance.json").exists():
            write_subject(folder, cell.table, cell.class_name, cell.index, first=FIRST_PHOTO)
    return folder


def settings_of(flags: tuple[str, ...], seed: int) -> dict[str, Any]:
    """The settings of a training that differ from the preset's.

    Two ways to write the same settings give the same result, so they are one training.
    """
    plain = dataclasses.asdict(preset_config("toybox"))
    words = ["--preset", "toybox", "--seed", str(seed), *flags]
    config = dataclasses.asdict(parse(TrainConfig, words))

    irrelevant = {*names_of(TrainConfig, PLACE), "preset"}
    return {
        name: value
        for name, value in config.items()
        if name not in irrelevant and value != plain[name]
    }


def concept_file(cell: Cell, flags: tuple[str, ...], base: Base) -> Path:
    """Where the concept of a cell is kept: by base, settings, subject and code."""
    settings = sorted(settings_of(flags, cell.seed).items())
    identity = repr((base.fingerprint, settings, cell.table, cell.subject, code_mark()))
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return store.WORK / "concepts" / key / "concept.safetensors"


def concept(cell: Cell, flags: tuple[str, ...], base: Base) -> Path:
    """The concept file of a cell. Equal settings are trained once for all studies and processes."""
    file = concept_file(cell, flags, base)

    with store.in_turn(f"concepts/{file.parent.name}"):
        if not file.exists():
            train(cell, flags, base, file.parent)
    return file


def forget(study: Study, cells: Sequence[Cell], base: Base) -> None:
    """Removes what is kept of these cells of a study: figures, concepts, rows of pictures."""
    for cell in cells:
        flags = study.variants[cell.variant]
        if flags is not None:
            file = concept_file(cell, flags, base)
            for kept in (file, *file.parent.glob("rows*.json")):
                kept.unlink(missing_ok=True)
    for name in {cell.study for cell in cells}:
        store.remove_cells(name, {cell.key for cell in cells if cell.study == name})


def train(cell: Cell, flags: tuple[str, ...], base: Base, folder: Path) -> None:
    """Trains by the real command line; a training that was stopped goes on.

    Raises RuntimeError if the command fails.
    """
    script = str(store.ROOT / "train_eqdiff.py")
    words = ["--pretrained_model_name_or_path", base.name, "--preset", "toybox"]
    words += ["--seed", str(cell.seed), "--instance_data_dir", str(photos(cell))]
    words += ["--output_dir", str(folder), "--validation_steps", "0", "--report_to", "none"]
    if newest(folder / CHECKPOINTS):
        words += ["--resume_from_checkpoint", "latest"]
    else:
        words += ["--overwrite"]

    done = subprocess.run(
        [sys.executable, script, *words, *flags],
        cwd=store.ROOT,
        env={name: value for name, value in os.environ.items() if name not in store.RANKS},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{cell.name}: training failed\n{done.stderr[-2000:]}")


def drawn(file: Path, options: dict[str, float], base: Base) -> Tensor:
    """Pictures (N,3,H,W) of the prompts, in [-1,1]; the seeds are the same in all cells.

    options: arguments of the pipeline.
    """
    texts = [prompt.text for prompt in prompts()]
    seeds = [seed_of(0, text, 0) for text in texts]
    pipe = EqDiffPipeline.of(base)

    pipe.load_concept(str(file))
    try:
        return draw_prompts(pipe, texts, seeds, **options)
    finally:
        pipe.unload_concept()


def drawn_truth(cell: Cell) -> Tensor:
    """The prompts as the toybox draws them, in other poses than those of the ground truth."""
    subject = instance(cell.table, cell.class_name, cell.index)
    first = FIRST_TRUTH + 50 + cell.seed
    scenes = [
        Scene(subject, prompt.context, prompt.style, first + 100 * number)
        for number, prompt in enumerate(prompts())
    ]
    return to_tensor(np.stack([draw(scene).image for scene in scenes]))


def measured(images: Tensor, cell: Cell, instruments: Any) -> list[dict[str, Any]]:
    """A row a prompt: metrics, identity with the truth, and whether context and style are right."""
    scores = instruments.scores(images, prompts(), cell.class_name, photos(cell))
    named = instruments.judges.name(images)
    features = instruments.judges.identity(images)
    truth = instruments.truths(cell.table, cell.class_name, cell.index)

    rows = []
    for n, prompt in enumerate(prompts()):
        row: dict[str, Any] = {"prompt": prompt.text, "kind": prompt.kind}
        row |= {name: float(values[n]) for name, values in scores.items()}
        row["identity"] = float((features[n] @ truth[n].T).mean())
        row["context"] = int(named["context"][n]) == CONTEXT_NAMES.index(prompt.context)
        row["style"] = int(named["style"][n]) == STYLE_NAMES.index(prompt.style)
        rows.append(row)
    return rows


def rows_of(cell: Cell, study: Study, base: Base, instruments: Any) -> list[dict[str, Any]]:
    """The measures of a cell. What another study drew from the same concept is not drawn again."""
    flags = study.variants[cell.variant]
    if flags is None:
        return measured(drawn_truth(cell), cell, instruments)

    options = study.draw.get(cell.variant, {})
    file = concept(cell, flags, base)
    words = "".join(f"-{name}-{options[name]:g}" for name in sorted(options))
    kept = file.with_name(f"rows{words}.json")
    if not kept.exists():
        rows = measured(drawn(file, options, base), cell, instruments)
        with replacing(kept, shared=True) as beside:
            beside.write_text(json.dumps(rows, indent=1) + "\n")

    return json.loads(kept.read_text())


def run(cell: Cell, study: Study, base: Base, instruments: Any) -> None:
    """Runs a cell and adds it to its study's file: settings, the base's fingerprint, its measures.

    Raises RuntimeError if its training fails, and UserError if the file cannot be written.
    """
    row: store.Row = {
        "study": cell.study,
        "variant": cell.variant,
        "table": cell.table,
        "subject": cell.subject,
        "seed": cell.seed,
        "base": base.fingerprint,
        "code": code_mark(),
        "flags": study.variants[cell.variant],
        "draw": study.draw.get(cell.variant, {}),
        "rows": rows_of(cell, study, base, instruments),
    }
    store.add_cell(cell.study, row)
