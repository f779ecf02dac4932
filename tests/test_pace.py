"""Time to quality: the curves of the table `pace`, and where they come to a level."""

from pathlib import Path
from typing import Any

import pytest

from eqdiff.settings.presets import parse
from eqdiff.settings.train import TrainConfig
from studies import charts
from studies.reproduce import pace
from studies.reproduce.methods import METHODS, TABLES
from studies.reproduce.questions import PACED

MARKS = {
    "Custom Diffusion": {300: 0.6, 100: 0.4},
    "E": {300: 0.7, 100: 0.5},
    "Infusion": {100: 0.2, 300: 0.3},
    "DreamBooth": {100: 0.65, 300: 0.2},
}


@pytest.fixture
def found() -> dict[str, Any]:
    """A table in which E's step costs two u and two seconds, that of the others one."""
    rows, costs = [], []
    for method, marks in MARKS.items():
        for steps, mean in marks.items():
            name = method if steps == 300 else f"{method}, {steps} steps"
            row = {"variant": name, "prompts": "all", "metric": pace.METRIC, "mean": mean}
            rows += [
                {**row, "low": mean - 0.1, "high": mean + 0.1},
                {**row, "prompts": "style", "mean": 9.0, "low": None, "high": None},
                {**row, "metric": "identity", "mean": 9.0, "low": None, "high": None},
            ]
            unit = 2.0 if method == "E" else 1.0
            cost = {"variant": name, "steps": steps, "step_u": unit, "train_seconds": steps * unit}
            costs.append(cost)
    return {"rows": rows, "costs": costs}


def test_a_method_comes_to_the_level_between_two_points_of_its_curve(found: dict) -> None:
    lines = pace.curves(found)
    assert [point.steps for point in lines["E"]] == [100, 300]
    first = pace.reached(lines["E"], 0.6)
    assert first is not None and first[:3] == pytest.approx((200, 400, 400))
    assert pace.reached(lines["Infusion"], 0.6) is None
    assert pace.reached(lines["DreamBooth"], 0.6) == lines["DreamBooth"][0]


def test_a_line_a_method_says_when_and_its_share_of_the_work(found: dict) -> None:
    lines = {line.split(" | ")[0][2:]: line for line in pace.as_text(found).splitlines()[2:]}
    assert lines["E"] == "| E | 0.700 ± 0.100 | 300 | 600 | 600 | 200 | 400 | 400 | 1.33 |"
    assert lines["Custom Diffusion"].endswith("| 300 | 300 | 300 | 1.00 |")
    assert "| at most 100 | 100 | 100 | 0.33 |" in lines["DreamBooth"]
    assert "| not reached |" in lines["Infusion"]


def test_the_curves_are_drawn_from_less_work_to_more(found: dict, tmp_path: Path) -> None:
    sheet = pace.figure(found)
    left = {line.get_label(): line for line in sheet.axes[0].lines}
    assert list(left["E"].get_xdata()) == [200, 600] and list(left["E"].get_ydata()) == [0.5, 0.7]
    charts.save(sheet, tmp_path / "pace.png")
    assert (tmp_path / "pace.png").stat().st_size > 1000


def test_fewer_steps_are_a_point_of_their_own_methods_curve() -> None:
    names = ("E", "E, FreeCustom for RRA", "E, FreeCustom for RRA, 50 steps", "E, 50 steps")
    facts = {"metric": pace.METRIC, "prompts": pace.PROMPTS, "mean": 0.5, "low": None, "high": None}
    costs = [
        {"variant": name, "steps": number, "step_u": 2, "train_seconds": 1}
        for number, name in enumerate(names, start=1)
    ]
    lines = pace.curves({"costs": costs, "rows": [facts | {"variant": name} for name in names]})
    steps = {method: [point.steps for point in points] for method, points in lines.items()}
    assert steps == {"E": [1, 4], "E, FreeCustom for RRA": [2, 3]}


def test_a_method_after_fewer_steps_differs_in_its_steps_alone() -> None:
    for name, (_, counts) in PACED.items():
        whole = parse(TrainConfig, ["--preset", "toybox", *METHODS[name].flags(True)])
        for count in counts:
            flags = METHODS[f"{name}, {count} steps"].flags(True)
            part = vars(parse(TrainConfig, ["--preset", "toybox", *flags]))
            assert part == vars(whole) | {"max_train_steps": count}
            assert count < whole.max_train_steps
            assert METHODS[f"{name}, {count} steps"].draw == METHODS[name].draw
            assert f"{name}, {count} steps" in TABLES["pace"].methods
