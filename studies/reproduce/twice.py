"""How far the figures of cells are apart that were run twice, by two machines, say.

    python -m studies.reproduce.twice studies/results/toybox studies/results/more

Equal keys are the same cell. A line a metric: the mean over cells of how far its means are apart,
and the second folder's less the first's with its 95 % interval over cells.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from eqdiff.errors import main_guard, require
from studies.reproduce.cell import Row
from studies.reproduce.estimates import estimate, span, table_head, table_line
from studies.reproduce.store import Store

METRICS = ("identity", "clip_t", "dino_i")


def differences(first: Path, second: Path, metric: str) -> list[float]:
    """The second folder's mean of a metric less the first's, for each cell that both have.

    Raises UserError if there is none.
    """
    before, after = (Store(folder).rows() for folder in (first, second))
    shared = sorted(before.keys() & after.keys())
    require(shared, f"{first}, {second}: no cell is in both; name folders of the same table")
    return [_mean(after[key], metric) - _mean(before[key], metric) for key in shared]


def _mean(row: Row, metric: str) -> float:
    return fmean(picture[metric] for picture in row["rows"])


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs=2, type=Path, metavar="FOLDER", help="of cells")
    args = parser.parse_args(argv)

    lines = table_head(["metric", "apart", "second less first", "cells"])
    for metric in METRICS:
        gaps = differences(*args.folders, metric)
        found = estimate(gaps)
        lines.append(
            table_line([metric, f"{fmean(map(abs, gaps)):.4f}", span(found), str(len(gaps))])
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
