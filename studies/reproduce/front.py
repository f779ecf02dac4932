"""Does DCI reach what plain sampling does not? Its text against plain text at the same identity.

    python -m studies.reproduce.front studies/results/siblings

Plain sampling has a point for each guidance, for each subject. A point of DCI has a gain: its
CLIP-T less the best plain one with no less DINO-I. Where no plain point has that much, the one with
the most counts. The claim of arXiv 2412.04831 is that gains are positive. The table `front` has the
cells. Writes front_gains.json beside them.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eqdiff.errors import main_guard
from eqdiff.files import replacing
from studies.reproduce.drawn import cells_of
from studies.reproduce.estimates import by_subject, estimate, for_json, verdict
from studies.reproduce.methods import DCIS, PLAIN
from studies.reproduce.shown import front
from studies.reproduce.tables import needed

CURVE = ("ICO", *PLAIN)

Point = tuple[float, float]  # DINO-I, CLIP-T


def gain(point: Point, plain: Sequence[Point]) -> float:
    """The point's text less the best of the plain ones with no less identity."""
    rivals = [text for identity, text in plain if identity >= point[0]]
    return point[1] - max(rivals, default=max(plain)[1])


def points(folder: Path, method: str) -> dict[str, Point]:
    """Subject -> its point, over all prompts."""
    cells = [{**row, "variant": method} for row in cells_of(folder, method)]
    identity, text = (by_subject(cells, method, "all", name) for name in ("dino_i", "clip_t"))
    return {subject: (identity[subject], text[subject]) for subject in text}


def row_of(
    method: str, own: Mapping[str, Point], curves: Sequence[Mapping[str, Point]] = ()
) -> dict[str, Any]:
    """The means of a method, and its gain over plain points, which have none themselves."""
    identity, text = (estimate(part).mean for part in zip(*own.values(), strict=True))
    row = {"method": method, "dino_i": identity, "clip_t": text}
    if not curves:
        return row

    shared = own.keys() & set.intersection(*({*curve} for curve in curves))
    found = estimate(gain(own[name], [curve[name] for curve in curves]) for name in sorted(shared))
    return row | {"gain": found._asdict(), "verdict": verdict(found), "needed": needed(found)}


def measured(folder: Path) -> list[dict[str, Any]]:
    """A row for each plain point, then for each of DCI's."""
    curves = {method: points(folder, method) for method in CURVE}
    rows = [row_of(method, own) for method, own in curves.items()]
    others = [row_of(method, points(folder, method), [*curves.values()]) for method in DCIS]
    return [*rows, *others]


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the cells of the table `front`")
    args = parser.parse_args(argv)

    record = for_json({"points": measured(args.folder)})
    print(front(record))
    with replacing(args.folder / "front_gains.json") as beside:
        beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
