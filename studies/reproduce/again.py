"""What was chosen on the first subjects, measured again on others, which chose nothing.

    python -m studies.reproduce.again studies/results/more

The best of several rows owes a part of its lead to chance. So the rows of `beyond` that won on the
first eight test subjects are trained again on the next eight:

    bash scripts/ablation.sh plus --num_subjects 16 --output_dir studies/results/more

Writes again.json beside the cells: differences from E, paired by subject.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.errors import main_guard
from eqdiff.files import replacing
from studies.reproduce.drawn import cells_of
from studies.reproduce.estimates import finite
from studies.reproduce.methods import TABLES
from studies.reproduce.shown import directions
from studies.reproduce.subjects import of_toybox
from studies.reproduce.tables import as_row, gain

AGAINST, *ROWS = TABLES["plus"].methods
METRICS = ("identity", "clip_t", "identity x text")
FIRST, ALL = 8, 16  # subjects that chose, and those with the ones that did not


def claims(folder: Path, subjects: Sequence[str]) -> list[dict[str, Any]]:
    """What each row has more than E on these subjects, as `shown.directions` has it."""
    cells = [
        {**row, "variant": method}
        for method in (AGAINST, *ROWS)
        for row in cells_of(folder, method)
        if row["subject"] in subjects
    ]
    return [
        as_row(gain(cells, method, AGAINST, "all", metric)) for method in ROWS for metric in METRICS
    ]


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the cells of the table `plus`")
    args = parser.parse_args(argv)

    names = [f"{class_name}_{index}" for class_name, index in of_toybox(ALL)]
    record = finite({"subjects": names[FIRST:], "directions": claims(args.folder, names[FIRST:])})
    print(directions(record))
    with replacing(args.folder / "again.json") as beside:
        beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
