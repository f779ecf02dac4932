"""A study's rows as a chart: text against identity, a point a variant, a panel a prompt set."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies import charts

X, Y = "clip_t", "identity"
TITLES = {"plain": "plain prompts", "style": "stylized prompts"}
COLOURS = 10  # of matplotlib's cycle
MARKS = "osD^vP*X"  # a colour comes again after ten variants, with another mark

Row = dict[str, Any]


def points(rows: Sequence[Row], kind: str) -> dict[str, dict[str, Row]]:
    """variant -> metric -> row, of one prompt set."""
    by_variant: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["prompts"] == kind and row["metric"] in (X, Y):
            by_variant.setdefault(row["variant"], {})[row["metric"]] = row
    return by_variant


def half_width(row: Row) -> float:
    """Half of the 95 % interval of a row's paired difference; 0 for a row that has none."""
    gap = row.get("difference")
    if not gap or gap["n"] < 2:
        return 0.0
    return (gap["high"] - gap["low"]) / 2


def draw_panel(axes: Axes, rows: Sequence[Row], kind: str) -> None:
    """Draws one prompt set."""
    axes.set(title=TITLES[kind], xlabel="CLIP-T (cosine)", ylabel="identity with the truth")
    for number, (variant, row) in enumerate(points(rows, kind).items()):
        axes.errorbar(
            row[X]["mean"],
            row[Y]["mean"],
            xerr=half_width(row[X]),
            yerr=half_width(row[Y]),
            fmt=MARKS[number // COLOURS % len(MARKS)],
            color=f"C{number % COLOURS}",
            elinewidth=0.8,
            label=variant,
        )


def figure(rows: Sequence[Row]) -> Figure:
    """Both prompt sets on the same axes.

    A bar is the 95 % interval of the paired difference from the variant that the study compares
    the others with, laid around the mean; that variant has none itself.
    """
    sheet, panels = charts.panels(1, len(TITLES), shared=True)
    for axes, kind in zip(panels, TITLES, strict=True):
        draw_panel(axes, rows, kind)
    sheet.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return sheet
