"""How soon each method is good: identity x text against the work of its training.

    python -m studies.reproduce.pace studies/results/pace/pace.json --picture FILE

The table `pace` has each method after fewer and more steps. Between two of them its curve is taken
as straight. The work is of the training alone: class images are shared by all that need them.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from studies import charts
from studies.reproduce.estimates import plus_minus, table_head, table_line

METRIC, PROMPTS = "identity x text", "all"
LEVEL = "Custom Diffusion"  # its final mark is what the others are timed to
SHORTER = re.compile(r", \d+ steps$")  # what a row of fewer steps has behind its method's name
AXES = {"u": "u of the training", "seconds": "processor seconds of the training"}

Summary = dict[str, Any]


class Point(NamedTuple):
    """A method after so many steps.

    u: forwards of the UNet on a sample, counted. seconds: of a processor, with a process's start.
    value: the mean of METRIC; low, high: its 95 % interval over subjects.
    """

    steps: float
    u: float
    seconds: float
    value: float
    low: float | None = None
    high: float | None = None


def curves(found: Summary) -> dict[str, list[Point]]:
    """Method -> its points, fewest steps first."""
    costs = {row["variant"]: row for row in found["costs"]}
    lines: dict[str, list[Point]] = {}
    for row in found["rows"]:
        if (row["metric"], row["prompts"]) != (METRIC, PROMPTS):
            continue
        cost = costs[row["variant"]]
        method = SHORTER.sub("", row["variant"])
        work = (cost["steps"], cost["steps"] * cost["step_u"], cost["train_seconds"])
        point = Point(*work, row["mean"], row["low"], row["high"])
        lines.setdefault(method, []).append(point)
    return {method: sorted(points) for method, points in lines.items()}


def reached(points: Sequence[Point], level: float) -> Point | None:
    """Where a curve first comes to a level; its first point if that is above, None: nowhere."""
    before: Point | None = None
    for point in points:
        if point.value >= level:
            if before is None:
                return point
            share = (level - before.value) / (point.value - before.value)
            steps, u, seconds = (
                b + share * (p - b) for b, p in zip(before[:3], point[:3], strict=True)
            )
            return Point(steps, u, seconds, level)
        before = point
    return None


def as_text(found: Summary) -> str:
    """A line a method: its last point, and when it comes to the level."""
    lines = curves(found)
    goal = lines[LEVEL][-1]
    titles = ("method", METRIC, "steps", "u", "CPU s", f"comes to {goal.value:.3f}: steps", "u")
    rows = table_head([*titles, "CPU s", f"u of {LEVEL}'s"])
    for method, points in lines.items():
        last = points[-1]
        cells = [method, plus_minus(last.value, last.high), *_work(last)]
        first = reached(points, goal.value)
        if first is None:
            cells += ["not reached", "", "", ""]
        else:
            steps, *work = _work(first)
            most = "at most " if first is points[0] else ""
            cells += [most + steps, *work, f"{first.u / goal.u:.2f}"]
        rows.append(table_line(cells))
    return "\n".join(rows)


def _work(point: Point) -> list[str]:
    return [f"{point.steps:.0f}", f"{point.u:,.0f}", f"{point.seconds:.0f}"]


def figure(found: Summary) -> Figure:
    """The curves, against u and against seconds; a dashed line is the level."""
    lines = curves(found)
    sheet, panels = charts.panels(1, len(AXES))
    for axes, (unit, title) in zip(panels, AXES.items(), strict=True):
        axes.set(xlabel=title, ylabel=METRIC, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axhline(lines[LEVEL][-1].value, color="grey", linestyle="--", linewidth=0.8)
        for number, (method, points) in enumerate(lines.items()):
            work = [getattr(point, unit) for point in points]
            values = [point.value for point in points]
            axes.plot(work, values, marker="o", color=f"C{number}", label=method)
            bounds = [(point.low, point.high) for point in points]
            if all(None not in pair for pair in bounds):
                axes.fill_between(work, *zip(*bounds, strict=True), color=f"C{number}", alpha=0.1)
    sheet.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, metavar="FILE", help="JSON of the table `pace`")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="of the curves")
    args = parser.parse_args(argv)
    found = json.loads(args.table.read_text(encoding="utf-8"))
    print(as_text(found))
    if args.picture:
        charts.save(figure(found), args.picture)


if __name__ == "__main__":
    main()
