"""The chart of metrics over checkpoints: the same figures give the same picture, and all of them
show."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eqdiff.evaluation.chart import curve

ROOT = Path(__file__).resolve().parent.parent
RED = (214, 39, 40)  # of the line at the best


def reports(
    *steps: int | None, low: float | None = 0.4, means: tuple[float, ...] = (0.5, 0.6, 0.55)
):
    """Reports of three folders with two metrics, as eval_eqdiff.measure gives them."""
    rows: list[dict[str, Any]] = []
    for step, mean in zip(steps, means, strict=True):
        high = None if low is None else 0.7
        figure = {"mean": mean, "low": low, "high": high, "n": 4}
        rows.append({"step": step, "overall": {"clip_t_cos": figure, "dino_i": figure}})
    return rows


def red_columns(image: Image.Image) -> list[int]:
    """Where the line at the best stands in the left panel [pixels]."""
    pixels = np.asarray(image, np.int16)[:, : image.width // 2]
    return np.flatnonzero((np.abs(pixels - RED).sum(-1) < 60).sum(0) > 50).tolist()


def test_the_same_figures_give_the_same_picture_and_others_another() -> None:
    first = curve(reports(100, 200, 300), 1)
    assert first.mode == "RGB"
    assert first.tobytes() == curve(reports(100, 200, 300), 1).tobytes()

    for other in (
        reports(100, 200, 400),
        reports(100, 200, 300, low=0.45),
        reports(100, 200, 300, low=None),
        reports(100, 200, 300, means=(0.5, 0.6, 0.65)),
    ):
        assert curve(other, 1).tobytes() != first.tobytes()


def test_reports_are_drawn_by_their_steps_whatever_their_order() -> None:
    rows = reports(300, 100, 200)
    sorted_rows = [rows[1], rows[2], rows[0]]
    assert curve(rows, 0).tobytes() == curve(sorted_rows, 2).tobytes()


def test_a_red_line_stands_at_the_best() -> None:
    places = [red_columns(curve(reports(100, 200, 300), best)) for best in range(3)]
    assert all(len(columns) in (1, 2) for columns in places)
    assert places[0][0] < places[1][0] < places[2][0]
    assert abs(places[0][0] + places[2][0] - 2 * places[1][0]) <= 2


def test_folders_without_known_steps_are_counted() -> None:
    counted = curve(reports(None, None, None), 0)
    assert red_columns(counted) == red_columns(curve(reports(1, 2, 3), 0))
    assert red_columns(curve(reports(7, 7, 9), 0)) == red_columns(counted)


def is_imported(name: str, by: str) -> bool:
    """Whether a module is there once another one was imported, in a process of its own."""
    code = f"import sys, {by}; print('{name}' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


def test_no_global_state_of_matplotlib_is_touched() -> None:
    assert not is_imported("matplotlib.pyplot", by="eqdiff.evaluation.chart")


def test_a_drawing_does_not_wait_for_the_library_of_charts() -> None:
    assert not is_imported("matplotlib", by="eqdiff.gallery.page")
