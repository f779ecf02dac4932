"""Draws the base's marks against the samples it has seen: `python -m toybox.curve [--output FILE]`.

It reads toybox/progress.jsonl, which `python -m toybox.publish` copies from the run, and shows
whether more training would help.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eqdiff.files import replacing
from eqdiff.settings.places import ASSETS
from toybox.publish import PROGRESS

MARKS = ("class", "context", "style", "colour", "second", "pattern", "emblem")
SAMPLES = "thousand samples"

Row = dict[str, Any]  # a measurement of the base


def read(file: Path) -> list[Row]:
    """The measurements, in order."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def draw_marks(axes: Axes, samples: Sequence[float], rows: Sequence[Row]) -> None:
    """Draws each mark as a share of the judge's own on drawn pictures."""
    for name in MARKS:
        axes.plot(samples, [row[f"{name}_share"] for row in rows], ".-", label=name)
    axes.set(xlabel=SAMPLES, ylabel="named right, share of drawn pictures", ylim=(0, 1.15))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def draw_distance(axes: Axes, samples: Sequence[float], rows: Sequence[Row]) -> None:
    """Draws the Fréchet distance in floors and, on a second axis, colour words followed."""
    floors = [row["frechet"] / row["frechet_floor"] for row in rows]
    axes.plot(samples, floors, ".-", color="black", label="Fréchet distance")
    axes.set(xlabel=SAMPLES, ylabel="Fréchet distance [floors]", ylim=(0, 1.05 * max(floors)))

    words = axes.twinx()
    followed = [row["colour_followed"] for row in rows]
    words.plot(samples, followed, ".-", color="tab:orange", label="colour words followed")
    words.set(ylabel="colour words followed", ylim=(0, 1.05))
    handles = [*axes.get_lines(), *words.get_lines()]
    axes.legend(handles=handles, loc="lower left")


def figure(rows: Sequence[Row]) -> Figure:
    """Both panels."""
    sheet = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    left, right = sheet.subplots(1, 2)
    samples = [row["samples"] / 1000 for row in rows]
    draw_marks(left, samples, rows)
    draw_distance(right, samples, rows)
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--progress", type=Path, default=PROGRESS, metavar="FILE")
    parser.add_argument(
        "--output", type=Path, default=ASSETS / "pictures" / "base_progress.png", metavar="FILE"
    )
    args = parser.parse_args(argv)

    sheet = figure(read(args.progress))
    with replacing(args.output) as beside:
        sheet.savefig(beside, format="png", metadata={"Software": None})


if __name__ == "__main__":
    main()
