"""Draws how the metrics of one subject's samples move over the checkpoints, one panel a metric.

Matplotlib's objects alone are used, without pyplot: no window, no global state, and the same
picture for the same figures.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

CURVES = ("clip_t_cos", "clip_i", "dino_i", "truth_i")
PANEL = (4.2, 2.4)  # width and height of a metric's panel [inches]
DPI = 100
LINE, BEST = "tab:blue", "tab:red"


def curve(reports: Sequence[dict[str, Any]], best: int) -> Image.Image:
    """One panel a metric that all reports have: means over the steps, intervals as a band.

    The x axis counts the reports where their steps are unknown or not distinct. A red line marks
    report number `best`.
    """
    steps = [report["step"] for report in reports]
    known = None not in steps and len(set(steps)) == len(steps)
    at = steps if known else list(range(1, len(reports) + 1))
    order = sorted(range(len(at)), key=at.__getitem__)
    names = [name for name in CURVES if all(name in report["overall"] for report in reports)]

    rows = math.ceil(len(names) / 2)
    figure = Figure(figsize=(2 * PANEL[0], rows * PANEL[1]), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)

    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, 2, number + 1)
        figures = [reports[i]["overall"][name] for i in order]
        _draw(axes, [at[i] for i in order], figures)
        axes.axvline(at[best], color=BEST, linewidth=1)
        axes.set_title(f"{name}; best at {'step' if known else 'folder'} {at[best]}", fontsize=10)
        axes.set_xlabel("step" if known else "folder, in the order given")

    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw(axes: Axes, at: Sequence[int], figures: Sequence[dict[str, Any]]) -> None:
    """Draws one metric: its means as a line with dots, its 95 % intervals as a band."""
    means = [figure["mean"] for figure in figures]
    lows = [figure["mean"] if figure["low"] is None else figure["low"] for figure in figures]
    highs = [figure["mean"] if figure["high"] is None else figure["high"] for figure in figures]

    axes.fill_between(at, lows, highs, color=LINE, alpha=0.2, linewidth=0)
    axes.plot(at, means, color=LINE, marker="o", markersize=4)
    axes.set_xticks(at if len(at) <= 8 else [at[0], at[-1]])
    axes.spines[["top", "right"]].set_visible(False)
