"""`--verify TABLE`: do pictures, rows and tables agree, and do cells come out the same again?

A row's key is worked out again from what the row says it is of, its seal from all that it says, its
metrics from the pictures that were kept, and the table from the rows. Some cells are run again.
"""

import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from eqdiff.wording import say
from studies.reproduce import tables
from studies.reproduce.attempts import CellFailed, run
from studies.reproduce.cell import Cell, Row, digest_of_file
from studies.reproduce.plan import Plan
from studies.reproduce.store import Store, seal
from studies.reproduce.tables import IMAGE, TEXT, TRUTH

MEASURED = 1e-3  # two measurements of a picture differ by this at most: another machine's rounding
AGAIN = 0.02  # two runs of a cell differ in the mean of a metric by this at most
METRICS = (*TEXT, *IMAGE, *TRUTH)
OF_A_CELL = tuple(Cell.__dataclass_fields__)

Measure = Callable[[Cell, Sequence[Row], Path], list[Row]]
Runner = Callable[[Cell, Path], Row]


def verify(plan: Plan, store: Store, *, run_cell: Runner = run, seed: int | None = None) -> int:
    """Verifies the tables that are asked for, and says what was found; the exit status.

    seed: of the choice of cells that are run again; None: another choice each time.
    """
    rows = store.gather()
    wrong = 0
    for name in plan.config.verify:
        cells = {
            plan.cells[place].key: plan.cells[place]
            for place in plan.cells
            if place[0] in plan.methods_of(name)
        }
        there = {key: cell for key, cell in cells.items() if key in rows}
        problems = table_problems(name, plan, store, rows)
        counts = {"cells": len(there), "pictures": 0}
        for key, cell in there.items():
            found, pictures = row_problems(cell, rows[key], store)
            counts["pictures"] += pictures
            problems += [f"{plan.names()[key]}: {problem}" for problem in found]

        sound = [cell for key, cell in there.items() if seal(rows[key]) == rows[key].get("seal")]
        chosen = random.Random(seed).sample(sound, min(plan.config.verify_cells, len(sound)))
        for cell in chosen:
            found = again(cell, rows[cell.key], store, run_cell)
            problems += [f"{plan.names()[cell.key]}: {problem}" for problem in found]

        if not there:
            problems.append("no cell of it is there; run it first")
        for problem in problems:
            say(f"verify {name}: {problem}")
        said = "agree" if not problems else f"{len(problems)} problems"
        say(
            f"verify {name}: {counts['cells']} of {len(cells)} cells, "
            f"{counts['pictures']} pictures measured again, {len(chosen)} cells run again: {said}"
        )
        wrong += bool(problems)
    return 1 if wrong else 0


def table_problems(name: str, plan: Plan, store: Store, rows: Mapping[str, Row]) -> list[str]:
    """Whether the table on the disk is what the rows give, in words."""
    why = {key: reason for key in plan.unique() if (reason := store.given_up(key))}
    text, summary = tables.rendered(name, plan, rows, why)
    problems = []
    for suffix, content in ((".md", text), (".json", summary)):
        file = store.folder / f"{name}{suffix}"
        if not file.is_file():
            problems.append(f"{file.name} is not there; run it first")
        elif file.read_text(encoding="utf-8") != content:
            problems.append(f"{file.name} is not what its cells give, asked with these flags")
    return problems


def row_problems(
    cell: Cell, row: Row, store: Store, measure: Measure | None = None
) -> tuple[list[str], int]:
    """What is wrong with a row, in words; and how many of its pictures were measured again."""
    problems = []
    if seal(row) != row.get("seal"):
        problems.append("its row was changed after it was written")
    if key_in(row) != row["key"]:
        problems.append("its row is not of the cell that its key names")

    images = store.kept_place(row["key"], "pictures")
    if not images.is_dir():
        return problems, 0
    kept = {name: images / name for name in row["pictures"]}
    absent = [name for name, file in kept.items() if not file.is_file()]
    changed = [
        name
        for name, file in kept.items()
        if name not in absent and digest_of_file(file) != row["pictures"][name]
    ]
    for names, what in ((absent, "is not there"), (changed, "is not the one that was measured")):
        problems += [f"picture {name} {what}" for name in names]
    if absent or changed:
        return problems, 0

    problems += apart(_measure(measure)(cell, row["rows"], images), row["rows"], MEASURED)
    return problems, len(kept)


def _measure(given: Measure | None) -> Measure:
    if given:
        return given
    from studies.reproduce.measures import measured  # heavy

    return measured


def key_in(row: Row) -> str:
    """The key of the cell that a row says it is of."""
    facts = {name: row.get(name) for name in OF_A_CELL}
    return Cell.of(facts).key


def apart(now: Iterable[Row], then: Iterable[Row], most: float) -> list[str]:
    """Which metrics of pictures differ by more than `most`, in words; the first of them alone."""
    for new, old in zip(now, then, strict=True):
        for name in METRICS:
            if name in old and abs(new[name] - old[name]) > most:
                place = f"{name} of {old.get('file', old['prompt'])}"
                return [f"{place} is {new[name]:.4f} where its row says {old[name]:.4f}"]
    return []


def again(cell: Cell, row: Row, store: Store, run_cell: Runner) -> list[str]:
    """Runs a cell again; what is other now, in words."""
    store.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.work, prefix="verify-") as place:
        try:
            new = run_cell(cell, Path(place))
        except CellFailed as failure:
            return [f"run again, it failed: {failure}"]

    problems = []
    for name in METRICS:
        means = [_mean(rows, name) for rows in (new["rows"], row["rows"])]
        if None not in means and abs(means[0] - means[1]) > AGAIN:
            problems.append(f"run again, its {name} is {means[0]:.4f}, and was {means[1]:.4f}")
    return problems


def _mean(rows: Sequence[Any], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return fmean(values) if values else None
