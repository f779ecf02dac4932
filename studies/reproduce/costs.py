"""What each method of a table costs, and what it does to its base, a row each.

u is one forward of the UNet on one sample, see `cost.py`.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from studies.reproduce.cell import Cell, Row
from studies.reproduce.cost import image_units, step_units
from studies.reproduce.estimates import Estimate, estimate, plus_minus, table_head, table_line
from studies.reproduce.plan import Plan, settings_of


def costs(plan: Plan, methods: Sequence[str], rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """A row a method that has cells: counted u, and what the cells say of numbers and seconds.

    train_seconds, picture_seconds: of a processor, medians over the cells: the first of a class
    word draws its class images too. drift: its estimate over subjects. None for what cells of
    older code do not say.
    """
    cells: dict[str, list[Cell]] = {}
    for (method, _, _), cell in plan.cells.items():
        if cell.key in rows:
            cells.setdefault(method, []).append(cell)
    return [
        {"variant": method, **_counted(cells[method][0])}
        | _measured([rows[cell.key] for cell in cells[method]])
        for method in methods
        if method in cells
    ]


def _counted(cell: Cell) -> dict[str, float]:
    train, draw = settings_of(cell)
    images = len(cell.prompts) * cell.images
    return {
        "steps": train.max_train_steps,
        "step_u": round(step_units(train), 2),
        "picture_u": round(image_units(train, draw, images), 1),
    }


def _measured(rows: Sequence[Row]) -> dict[str, Any]:
    """What rows of a method say, each over those that say it."""
    known = [row for row in rows if "known" in row]
    if not known:
        return dict.fromkeys(("numbers", "train_seconds", "picture_seconds", "drift"))

    times = [row["cpu_seconds"] for row in known]
    pictures = [len(row["rows"]) for row in known]
    drifts: dict[str, list[float]] = {}
    for row in known:
        drifts.setdefault(row["subject"], []).append(row["known"]["drift"]["all"]["eps"])
    return {
        "numbers": known[0]["known"]["numbers"],
        "train_seconds": round(median(time["train"] for time in times), 1),
        "picture_seconds": round(
            median(time["draw"] / count for time, count in zip(times, pictures, strict=True)), 2
        ),
        "drift": estimate(median(values) for values in drifts.values())._asdict(),
    }


def costs_as_text(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    titles = ("variant", "numbers trained", "steps", "u a step", "CPU s to train")
    titles += ("u a picture", "CPU s a picture", "drift of the base x 1000")
    lines = ["## What they cost\n", *table_head(titles)]
    for row in found:
        numbers = "" if row["numbers"] is None else f"{row['numbers']:,}"
        cells = [row["variant"], numbers, row["steps"], row["step_u"], row["train_seconds"]]
        cells += [row["picture_u"], row["picture_seconds"], _drift(row["drift"])]
        lines.append(table_line(["" if cell is None else str(cell) for cell in cells]))
    note = (
        "u: forwards of the UNet, counted. CPU s: of one processor, with the start of a process. "
        "Drift: latent Fisher divergence, our definition (docs/methods.md); "
        "exactly 0 where only the subject's words change."
    )
    return "\n".join([*lines, "", note, ""])


def _drift(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    gap = Estimate(**found)
    return plus_minus(1000 * gap.mean, None if gap.high is None else 1000 * gap.high)
