"""Runs a study cell by cell and renders its tables: `bash scripts/ablation.sh [STUDY ...]`.

A cell that is in the study's file is not run again, so a killed study goes on where it stood.
EQDIFF_PROCESSES=N shares the cells out among N processes.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from accelerate import Accelerator
from tqdm import tqdm

from eqdiff.base.load import load_base
from eqdiff.errors import UserError, main_guard, require
from eqdiff.files import replacing
from eqdiff.processes import join_processes
from eqdiff.settings.places import BUNDLED_BASE
from studies import charts
from studies.ablation.cells import Cell, forget, keys_done, run
from studies.ablation.code import code_mark
from studies.ablation.figure import figure
from studies.ablation.instruments import Instruments
from studies.ablation.paper import PAPER, as_cells
from studies.ablation.store import Row, cells_file, claimed, folder_of, key_of, read_cells
from studies.ablation.tables import (
    claims,
    common,
    differences,
    directions,
    finite,
    markdown,
    table,
)
from studies.ablation.variants import STUDIES, Study, subjects


def cells_of(name: str, study: Study) -> list[Cell]:
    """All cells of a study. Those of a subject follow one another, so that early ones compare."""
    return [
        Cell(name, variant, class_name, index, seed, study.table)
        for class_name, index in subjects(study.subjects)
        for seed in range(study.seeds)
        for variant in study.variants
    ]


def render(name: str, study: Study) -> None:
    """Writes table.json, table.md and figure.png into the study's folder, from its cells so far."""
    cells = read_cells(cells_file(name))
    if not cells:
        return
    rows = table(common(cells), study.variants, study.against)
    bases = sorted({cell["base"] for cell in cells})
    summary: Row = {"study": name, "bases": bases, "cells": len(cells), "rows": rows}
    parts = [
        f"# {name}\n",
        f"{len(cells)} cells, {study.table} subjects, base {', '.join(bases)}; means and "
        "differences are of the subjects that all variants have, verdicts of all that the "
        "variants named in them have.\n",
        "![text against identity](figure.png)\n",
        markdown(rows, study.against, PAPER.get(name, {})),
        differences(rows, study.against),
    ]

    if name == "ablation" and {cell["variant"] for cell in cells} >= set("ABCDEF"):
        ours = directions(cells)
        summary["directions"] = [
            {"claim": claim, **estimate._asdict(), "verdict": verdict}
            for claim, estimate, verdict in ours
        ]
        parts.append(claims(ours, directions(as_cells("ablation"))))

    with replacing(folder_of(name) / "table.json") as beside:
        beside.write_text(json.dumps(finite(summary), indent=1) + "\n")
    with replacing(folder_of(name) / "table.md") as beside:
        beside.write_text("\n".join(parts))
    charts.save(figure(rows), folder_of(name) / "figure.png")


def run_study(name: str, study: Study, state: Accelerator, *, fresh: bool = False) -> str:
    """Runs the cells that are missing. Each process takes the next one that no other has.

    fresh: all cells are. Returns a sentence on what was there, and what was run.
    """
    cells = cells_of(name, study)
    base = None
    if fresh:
        base = load_base(str(BUNDLED_BASE))
        if state.is_main_process:
            forget(study, cells, base)
        state.wait_for_everyone()

    done = keys_done(name)
    missing = {cell.key: cell for cell in cells if cell.key not in done}
    sentence = _account(name, cells, len(missing))
    state.wait_for_everyone()  # all count the same cells
    if not missing:
        return sentence

    base = base or load_base(str(BUNDLED_BASE))
    instruments = Instruments()
    with tqdm(total=len(missing), desc=name, unit="cell", disable=not state.is_main_process) as bar:
        for cell in missing.values():
            with claimed(f"cells/{cell.name}") as mine:
                if mine and cell.key not in keys_done(name):
                    run(cell, study, base, instruments)
            bar.update(len(keys_done(name) & missing.keys()) - bar.n)
    return sentence


def _account(name: str, cells: Sequence[Cell], missing: int) -> str:
    """How many of a study's cells were there and how many were run, in words."""
    keys = {cell.key for cell in cells}
    there = [row for row in read_cells(cells_file(name)) if key_of(row) in keys]
    others = sum(row.get("code") != code_mark() for row in there)

    sentence = f"{len(there)} of {len(cells)} cells were there"
    if others:
        sentence += f" ({others} made by other code than this)"
    if missing:
        return f"{sentence}, {missing} were run"
    return f"{sentence}, nothing was trained; --fresh runs them again"


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError if a study or a variant is unknown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "studies", nargs="*", default=["ablation"], metavar="STUDY", help=", ".join(STUDIES)
    )
    parser.add_argument(
        "--subjects", type=int, help="subjects of the table, instead of the study's own number"
    )
    parser.add_argument(
        "--seeds", type=int, help="trainings a subject and variant, instead of the study's number"
    )
    parser.add_argument(
        "--variants", nargs="+", metavar="NAME", help="run these alone; tables show all cells"
    )
    parser.add_argument("--table", action="store_true", help="render the tables; run nothing")
    parser.add_argument(
        "--fresh", action="store_true", help="remove the cells and their concepts, and run them"
    )
    args = parser.parse_args(argv)

    for name in args.studies:
        require(name in STUDIES, f"no study {name!r}: name some of {', '.join(STUDIES)}")
        known = STUDIES[name].variants
        for variant in args.variants or ():
            if variant not in known:
                raise UserError(f"--variants {variant}: {name} has {', '.join(known)}")
    return args


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    args = options(argv)
    # not PartialState: on a CPU it takes each process for the first and only one
    state = join_processes()

    changes = {"subjects": args.subjects, "seeds": args.seeds}
    changes = {name: value for name, value in changes.items() if value is not None}
    for name in args.studies:
        study = dataclasses.replace(STUDIES[name], **changes)
        sentence = "nothing was run"
        if not args.table:
            chosen = {
                variant: flags
                for variant, flags in study.variants.items()
                if variant in (args.variants or study.variants)
            }
            part = dataclasses.replace(study, variants=chosen)
            sentence = run_study(name, part, state, fresh=args.fresh)

        state.wait_for_everyone()
        if state.is_main_process:
            render(name, study)
            print(f"done: {sentence}; see studies/results/{name}/table.md")


if __name__ == "__main__":
    main(sys.argv[1:])
