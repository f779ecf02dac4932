"""What was chosen on the first subjects, measured again on others, which chose nothing.

    python -m studies.reproduce.again studies/results/more

The best of several rows owes a part of its lead to chance. So the rows that won on the first eight
test subjects are trained again on the next eight. Those of `beyond` have a table, `plus`; of any
other table its rows are named:

    bash scripts/ablation.sh plus --num_subjects 16 --output_dir studies/results/more
    python -m studies.reproduce.again studies/results/toybox --table fig9 --methods "0 0 1"

Writes again.json and again.md beside the cells (again_TABLE for another table than `plus`):
differences from the method that the table compares with, paired by subject.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.errors import main_guard, require
from studies.reproduce.drawn import side_by_side
from studies.reproduce.estimates import for_json
from studies.reproduce.methods import TABLES
from studies.reproduce.shown import directions, write_page
from studies.reproduce.study import Table
from studies.reproduce.subjects import of_toybox
from studies.reproduce.tables import as_row, gain

TABLE = "plus"
METRICS = ("identity", "clip_t", "identity x text")
FIRST, ALL = 8, 16  # subjects that chose, and those with the ones that did not


def claims(
    folder: Path, subjects: Sequence[str], methods: Sequence[str], against: str
) -> list[dict[str, Any]]:
    """What each method has more than `against` on these subjects, as `shown.directions` has it.

    Raises UserError if one of them has no cells of these subjects.
    """
    cells = [row for row in side_by_side(folder, (against, *methods)) if row["subject"] in subjects]
    asked = {row["variant"] for row in cells}
    for method in (against, *methods):
        require(method in asked, f"{folder}: {method} has no cells of {', '.join(subjects)}")
    return [
        as_row(gain(cells, method, against, "all", metric))
        for method in methods
        for metric in METRICS
    ]


def write(place: Path, record: dict[str, Any], table: Table) -> None:
    """The record, and a page of it. place: of both, without their endings."""
    page = f"""# {table.title}, asked again

Subjects that chose nothing: {", ".join(record["subjects"])}. Differences are paired by subject.

{directions(record)}
"""
    write_page(place, record, page)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the table's cells")
    parser.add_argument("--table", choices=sorted(TABLES), default=TABLE, metavar="NAME")
    parser.add_argument("--methods", nargs="+", help="of the table; all if left out")
    args = parser.parse_args(argv)
    table = TABLES[args.table]
    others = [name for name in table.methods if name != table.against]
    methods = args.methods or others
    require(
        set(methods) <= set(others),
        f"--methods: {args.table} compares {', '.join(others)}, no other",
    )

    names = [f"{class_name}_{index}" for class_name, index in of_toybox(ALL)][FIRST:]
    found = claims(args.folder, names, methods, table.against)
    record = for_json({"subjects": names, "directions": found})
    print(directions(record))
    write(args.folder / ("again" if args.table == TABLE else f"again_{args.table}"), record, table)


if __name__ == "__main__":
    main()
