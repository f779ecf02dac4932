"""The kept pictures of the toybox's cells in a folder, by the method that drew them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from eqdiff.errors import require
from studies.reproduce.cell import Row, key_with
from studies.reproduce.methods import METHODS
from studies.reproduce.plan import opening
from studies.reproduce.store import Store
from toybox.instances import CLASS_NAMES, Instance, instance
from toybox.truth import read_prompt

OPENING = opening("toybox", 128)


@dataclass(frozen=True)
class Drawn:
    """A kept picture: what its row says of it, whom it is to show, where and in which style."""

    row: Row
    file: Path
    subject: Instance
    context: str
    style: str

    @property
    def picture(self) -> Image.Image:
        return Image.open(self.file).convert("RGB")


def cells_of(folder: Path, method: str) -> list[Row]:
    """The rows of a method's cells, the classes in turn, seed by seed.

    A row is found by its key, so by what its flags meant when it was made.

    Raises UserError if there is none.
    """
    flags = METHODS[method]
    words = (*OPENING, *flags.flags(True))
    rows = [
        row
        for row in Store(folder).rows().values()
        if key_with(row, words, flags.draw) == row["key"]
    ]
    remedy = f"run bash scripts/ablation.sh with a table that has {method} first"
    require(rows, f"{folder}: no cells of {method}; {remedy}")
    return sorted(rows, key=_place)


def side_by_side(folder: Path, methods: Sequence[str]) -> list[Row]:
    """The cells of methods as tables have them, of the seeds that all of these methods have.

    Raises UserError if a method has none.
    """
    rows = {method: cells_of(folder, method) for method in methods}
    seeds = set.intersection(*({row["seed"] for row in found} for found in rows.values()))
    return [
        {**row, "variant": method}
        for method, found in rows.items()
        for row in found
        if row["seed"] in seeds
    ]


def _place(row: Row) -> tuple[int, int, int]:
    name, number = row["subject"].rsplit("_", 1)
    return int(number), CLASS_NAMES.index(name), row["seed"]


def pictures_of(folder: Path, row: Row, table: str) -> Iterator[Drawn]:
    """A cell's pictures, in the order of its prompts.

    table: of the toybox, "test" or "dev". Raises UserError if they were not kept.
    """
    name, number = row["subject"].rsplit("_", 1)
    subject = instance(table, name, int(number))
    kept = Store(folder).kept_place(row["key"], "pictures")
    require(kept.is_dir(), f"{kept}: there is no such folder; run the cells with --keep pictures")
    for fact in row["rows"]:
        context, style = read_prompt(fact["prompt"]) or ("", "")
        yield Drawn(fact, kept / fact["file"], subject, context, style)


def add_arguments(parser: Any, **method: Any) -> None:
    """The options of a command that shows such pictures. method: what --method may be."""
    parser.add_argument("folder", type=Path, help="of the cells, as studies/results/toybox")
    parser.add_argument("--method", choices=sorted(METHODS), metavar="NAME", **method)
    parser.add_argument("--table", default="test", choices=("test", "dev"))
    parser.add_argument("--picture", type=Path, required=True, metavar="FILE")
