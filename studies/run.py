"""Runs a study cell by cell and renders its tables: `bash scripts/ablation.sh [STUDY ...]`.

A cell that is on disk is not run again, so a killed study goes on where it stood; EQDIFF_PROCESSES=N shards the cells.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eqdiff.base import load_base  # noqa: E402
from eqdiff.config import BUNDLED_BASE, UserError, main_guard  # noqa: E402 (the project is run from its folder)
from eqdiff.options import require_processes  # noqa: E402
from studies.cells import Cell, claimed, run  # noqa: E402
from studies.figure import figure  # noqa: E402
from studies.instruments import Instruments  # noqa: E402
from studies.paper import PAPER, as_cells  # noqa: E402
from studies.tables import claims, common, differences, directions, finite, markdown, read_cells, table  # noqa: E402
from studies.variants import STUDIES, Study, subjects  # noqa: E402


def cells_of(name: str, study: Study) -> list[Cell]:
    """All cells; a subject's variants and seeds follow one another, so that what is done is comparable at any time."""
    chosen = subjects(study.subjects)
    return [
        Cell(name, v, c, i, seed, study.table) for c, i in chosen for seed in range(study.seeds) for v in study.variants
    ]


def render(name: str, study: Study) -> None:
    """studies/<name>/table.json, table.md and figure.png from the cells that there are."""
    folder = ROOT / "studies" / name
    cells = read_cells(folder / "cells")
    if not cells:
        return
    rows = table(common(cells), study.variants, study.against)
    about = {"study": name, "bases": sorted({cell["base"] for cell in cells}), "cells": len(cells), "rows": rows}
    parts = [
        f"# {name}\n",
        f"{len(cells)} cells, {study.table} subjects, base {', '.join(about['bases'])}; means and differences are "
        "of the subjects that all variants have, verdicts of all that the variants named in them have.\n",
    ]
    parts += ["![text against identity](figure.png)\n"]
    parts += [markdown(rows, study.against, PAPER.get(name, {})), differences(rows, study.against)]
    if name == "ablation" and {cell["variant"] for cell in cells} >= set("ABCDEF"):
        found = directions(cells)
        about["directions"] = [{"claim": claim, **e._asdict(), "verdict": said} for claim, e, said in found]
        parts.append(claims(found, directions(as_cells("ablation"))))
    (folder / "table.json").write_text(json.dumps(finite(about), indent=1) + "\n")
    figure(rows).save(folder / "figure.png", optimize=True)
    (folder / "table.md").write_text("\n".join(parts))


def run_study(name: str, study: Study, state: Accelerator) -> None:
    """Runs the cells that are not there yet: each process takes the next one that no other has, quick or slow."""
    missing = [cell for cell in cells_of(name, study) if not cell.file.exists()]
    state.wait_for_everyone()  # all count the same cells
    if not missing:
        return
    base, instruments = load_base(str(BUNDLED_BASE)), Instruments()
    with tqdm(total=len(missing), desc=name, unit="cell", disable=not state.is_main_process) as bar:
        for cell in missing:
            with claimed(cell) as mine:
                if mine:
                    run(cell, study, base, instruments)
            bar.update(sum(one.file.exists() for one in missing) - bar.n)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", default=["ablation"], metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--subjects", type=int, help="subjects of the test table, instead of the study's own number")
    parser.add_argument("--seeds", type=int, help="trainings a subject and variant, instead of the study's own number")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="run these alone; tables show all that there is")
    parser.add_argument("--table", action="store_true", help="render what is there; run nothing")
    args = parser.parse_args(argv)
    for name in args.studies:
        if name not in STUDIES:
            raise UserError(f"no study {name!r}: name some of {', '.join(STUDIES)}")
        unknown = [variant for variant in args.variants or () if variant not in STUDIES[name].variants]
        if unknown:
            raise UserError(f"--variants {unknown[0]}: {name} has {', '.join(STUDIES[name].variants)}")
    state = Accelerator()  # not PartialState: that takes CPU processes for strangers, each the first of one
    require_processes(state)
    changes = {name: value for name in ("subjects", "seeds") if (value := getattr(args, name)) is not None}
    for name in args.studies:
        study = dataclasses.replace(STUDIES[name], **changes)
        if not args.table:
            chosen = {v: flags for v, flags in study.variants.items() if v in (args.variants or study.variants)}
            run_study(name, dataclasses.replace(study, variants=chosen), state)
        state.wait_for_everyone()
        if state.is_main_process:
            render(name, study)
            print(f"done: studies/{name}/table.md")


if __name__ == "__main__":
    main(sys.argv[1:])
