"""Charts for the studies, by matplotlib: panels of one size, and one way to save them."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eqdiff.files import replacing

DPI = 100  # pixels an inch
PANEL = (5.6, 4.2)  # width and height of a panel [inches]


def panels(
    rows: int, columns: int, *, size: tuple[float, float] = PANEL, shared: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure, and its panels row by row. shared: all panels have the same axes."""
    width, height = size
    figure = Figure(figsize=(columns * width, rows * height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path) -> None:
    """Writes a chart as PNG; its bytes do not name matplotlib's version.

    Raises UserError if it cannot be written.
    """
    with replacing(path) as beside:
        figure.savefig(beside, format="png", metadata={"Software": None})
