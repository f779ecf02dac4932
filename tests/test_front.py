"""Does DCI reach what plain sampling does not: text gained at no less identity."""

import json
from pathlib import Path
from typing import Any

import pytest

from studies.reproduce import front, shown
from studies.reproduce.methods import DCIS, PLAIN, TABLES

CURVE = [(0.2, 0.9), (0.6, 0.8), (0.4, 0.88)]


@pytest.mark.parametrize(
    ("point", "wanted"),
    [
        ((0.5, 0.86), 0.06),  # 0.8 alone has as much
        ((0.4, 0.87), -0.01),
        ((0.3, 0.70), -0.18),  # 0.8 has too, but less text
        ((0.1, 0.95), 0.05),
        ((0.9, 0.70), -0.10),  # none has: the one with the most
    ],
)
def test_a_gain_is_over_the_best_text_of_no_less_identity(
    point: front.Point, wanted: float
) -> None:
    assert front.gain(point, CURVE) == pytest.approx(wanted)


def test_gains_are_paired_by_subject_and_say_how_many_would_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each subject has a curve of its own; one that the curve lacks does not count."""
    shifts = {"mug_0": 0.0, "cat_0": 0.1}

    def cells(folder: Path, method: str) -> list[dict[str, Any]]:
        place = list(front.CURVE).index(method) if method in front.CURVE else None
        identity, text = (0.5, 0.86) if place is None else CURVE[place % 3]
        known = {**shifts, "car_0": 0.5} if place is None else shifts
        return [
            {"subject": name, "rows": [{"kind": "plain", "dino_i": identity, "clip_t": text + by}]}
            for name, by in known.items()
        ]

    monkeypatch.setattr(front, "cells_of", cells)
    front.main([str(tmp_path)])
    found = json.loads((tmp_path / "front_gains.json").read_text())
    rows = {row["method"]: row for row in found["points"]}
    assert list(rows) == ["ICO", *PLAIN, *DCIS] == list(TABLES["front"].methods)
    assert "gain" not in rows["ICO"]
    row = rows[DCIS[0]]
    assert row["gain"]["mean"] == pytest.approx(0.06) and row["gain"]["n"] == 2
    assert row["verdict"] == "holds" and row["needed"] is None
    assert shown.front(found) in capsys.readouterr().out
    assert "| +0.060 (+0.060 to +0.060) | 2 | holds |  |" in shown.front(found)
