"""How far each method's pictures are from the base's, and how much narrower: W2 of kept pictures.

    python -m studies.reproduce.spread FOLDER [--table dev] [--methods NAME ...]

The first training of a method on a subject counts. For each subject the base draws the class word
in the same prompts from the same seeds, once for all methods, and once more from other seeds.
`eqdiff/evaluation/gaussians.py` has the distance, whose definition is ours; it is taken in the
features of the toybox's DINO and CLIP. The floor is the base against itself. With a few dozen
pictures the trace term is mostly noise, and so is its floor. Writes spread.json beside the cells.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from eqdiff.base.load import load_base
from eqdiff.errors import main_guard
from eqdiff.evaluation.against_base import JUDGES, Features, base_pictures, features_of
from eqdiff.evaluation.gaussians import wasserstein
from eqdiff.files import replacing
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.places import ASSETS
from eqdiff.settings.presets import parse
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.train import TrainConfig
from studies.reproduce.cell import Row
from studies.reproduce.drawn import pictures_of
from studies.reproduce.estimates import estimate, for_json
from studies.reproduce.grid import first_trainings
from studies.reproduce.measures import Eyes, eyes_of
from studies.reproduce.methods import METHODS, TABLES
from studies.reproduce.shown import W2_TERMS, spread

TOYBOX = ASSETS / "toybox"
FLOOR = "the base, other seeds"


def terms(own: Features, base: Features) -> dict[str, float]:
    """W2^2 of two sets of pictures in its two terms, for each judge."""
    distances = {judge: wasserstein(own[judge], base[judge]) for judge in JUDGES}
    return {
        f"{j} {term}": getattr(gap, term) for j, gap in distances.items() for term in gap._fields
    }


def drawing_of(row: Row) -> list[dict[str, Any]]:
    """How the base is to draw what a cell has drawn: a row a picture, for `base_pictures`."""
    train, draw = parse(TrainConfig, list(row["train"])), parse(SampleConfig, list(row["draw"]))
    how = {
        "scheduler": draw.scheduler,
        "steps": draw.steps(train),
        "guidance": draw.guidance(train),
    }
    return [{"prompt": one["prompt"], "seed": one["seed"], **how} for one in row["rows"]]


class Bases:
    """What the base draws in the place of a cell's pictures, seen once for all cells that agree."""

    def __init__(self, pipe: EqDiffPipeline, eyes: Eyes) -> None:
        self.pipe = pipe
        self.eyes = eyes
        self.seen: dict[str, tuple[Features, Features]] = {}

    def look(self, pictures: Sequence[Image.Image]) -> Features:
        """What the judges see in pictures."""
        return features_of([pictures], self.eyes.dino, self.eyes.clip)

    def of(self, row: Row, size: tuple[int, int]) -> tuple[Features, Features]:
        """From the cell's own seeds, and from others."""
        wanted = drawing_of(row)
        key = json.dumps([row["class_word"], wanted])
        if key not in self.seen:
            own, others = (
                self.look(base_pictures(self.pipe, wanted, row["class_word"], size, number))
                for number in (0, 1)
            )
            self.seen[key] = own, others
        return self.seen[key]


def measured(
    folder: Path, table: str, methods: Sequence[str], bases: Bases
) -> dict[str, dict[str, dict[str, float]]]:
    """Method -> subject -> terms; the floor as a method of its own."""
    found: dict[str, dict[str, dict[str, float]]] = {FLOOR: {}}
    for method in methods:
        for subject, row in first_trainings(folder, method).items():
            pictures = [one.picture for one in pictures_of(folder, row, table)]
            base, again = bases.of(row, pictures[0].size)
            found.setdefault(method, {})[subject] = terms(bases.look(pictures), base)
            found[FLOOR][subject] = terms(again, base)
        print(method, flush=True)
    return found


def summary(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Method -> term -> its estimate over subjects."""
    return {
        method: {
            term: estimate(values[term] for values in subjects.values())._asdict()
            for term in W2_TERMS
        }
        for method, subjects in found.items()
    }


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the cells, with their pictures")
    parser.add_argument("--table", default="dev", choices=("test", "dev"), help="of the subjects")
    usual = list(TABLES["methods"].methods)
    parser.add_argument("--methods", nargs="+", default=usual, choices=METHODS, metavar="NAME")
    args = parser.parse_args(argv)

    eyes = eyes_of(str(TOYBOX / "clip"), str(TOYBOX / "dino"))
    bases = Bases(EqDiffPipeline.of(load_base(str(TOYBOX / "base"))), eyes)
    with torch.no_grad():
        found = measured(args.folder, args.table, args.methods, bases)

    record = for_json({"methods": summary(found), "subjects": found})
    print(spread(record))
    with replacing(args.folder / "spread.json") as beside:
        beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
