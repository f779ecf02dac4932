"""The rows of cells -> the paper's tables: its figures beside ours, differences, a verdict on each.

A subject is the unit, intervals are Student's t over subjects: see `estimates.py`.
Nothing in a table depends on who ran the cells, or when.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eqdiff.files import replacing
from eqdiff.settings.options import WRITTEN_BY
from studies import charts
from studies.reproduce.cell import Row
from studies.reproduce.code import code_mark
from studies.reproduce.costs import costs, costs_as_text
from studies.reproduce.estimates import (
    MANY,
    Claim,
    Estimate,
    by_subject,
    difference,
    differences,
    directions,
    estimate,
    for_json,
    markdown,
    span,
    subjects_to_tell,
    table,
    table_head,
    table_line,
    verdict,
)
from studies.reproduce.figure import figure
from studies.reproduce.methods import TABLES, TRADE_OFF
from studies.reproduce.paper import CLIP_T_FACTOR, as_cells
from studies.reproduce.plan import Plan
from studies.reproduce.study import Table

PAPERS = ("clip_t", "clip_i", "dino_i")  # the paper's metrics, in the order of its figures
# what a picture is measured by, as `measures.py` names it
TEXT = ("clip_t", "clip_t_background")
IMAGE = ("clip_i", "dino_i", "max_cosine", "max_cosine_clip")
TRUTH = ("identity", "context", "style")  # on the toybox alone, where the truth is known
COLOURS = "colours"  # of plain pictures of the toybox: dE00 to the truth, less is better
FACTS = ("file", "prompt", "kind", "seed")  # of a picture
SCALED = "clip_t x 2.5"
OURS = "identity x text"
# what a page shows beside one another
PANELS: dict[str, tuple[str, ...]] = {
    "The paper's metrics": (SCALED, "clip_i", "dino_i", TRADE_OFF),
    "The truth, which the toybox alone knows": ("identity", *TRUTH[1:], COLOURS, OURS),
}

Reasons = Mapping[str, str]  # key of a cell -> why it is not there


def write(plan: Plan, rows: Mapping[str, Row], why: Reasons, folder: Path) -> list[Path]:
    """Writes <table>.md and <table>.json of the plan's tables, and a chart where truth is known.

    Returns the pages.

    Raises UserError if one cannot be written.
    """
    pages = []
    for name in plan.config.tables:
        page = folder / f"{name}.md"
        text, summary = rendered(name, plan, rows, why)
        found = json.loads(summary).get("rows", [])
        if any(row["metric"] == "identity" for row in found):
            charts.save(figure(found), page.with_suffix(".png"))
        with replacing(page.with_suffix(".json")) as beside:
            beside.write_text(summary, encoding="utf-8")
        with replacing(page) as beside:
            beside.write_text(text, encoding="utf-8")
        pages.append(page)
    return pages


def rendered(name: str, plan: Plan, rows: Mapping[str, Row], why: Reasons) -> tuple[str, str]:
    """A table as a page and as JSON, from the cells that are there."""
    wanted = TABLES[name]
    methods = plan.methods_of(name)
    cells = table_cells(plan, methods, rows)
    parts = [f"# {wanted.title}, rebuilt\n", _account(plan, methods, cells)]
    summary: dict[str, Any] = {**WRITTEN_BY, "table": name, "cells": len(cells)}
    summary["seeds"] = plan.config.seeds

    if cells:
        metrics = metrics_in(cells)
        found = table(cells, methods, wanted.against, metrics)
        claims = claims_of(wanted, methods, cells)
        summary["rows"] = found
        summary["directions"] = [as_row(*claim) for claim in claims]
        if "identity" in metrics:
            parts.append(f"![text against identity]({name}.png)\n")
        summary["costs"] = costs(plan, methods, rows)
        parts += _panels(found, wanted, metrics)
        parts.append(costs_as_text(summary["costs"]))
        parts.append(differences(found, wanted.against))
        parts += [_directions(claims)] if claims else []

    lines = missing(wanted, plan, methods, rows, why)
    summary["missing"] = lines
    parts.append("".join(f"- {line}\n" for line in lines))
    return "\n".join(parts), json.dumps(for_json(summary), indent=0) + "\n"


def table_cells(plan: Plan, methods: Sequence[str], rows: Mapping[str, Row]) -> list[Row]:
    """The plan's cells of these methods that are there, as `estimates.py` has them."""
    cells = []
    for (method, subject, seed), cell in plan.cells.items():
        if method in methods and cell.key in rows:
            pictures = [_with_products(row) for row in rows[cell.key]["rows"]]
            cells.append({"variant": method, "subject": subject, "seed": seed, "rows": pictures})
    return cells


def _with_products(row: Row) -> Row:
    return {**row, SCALED: CLIP_T_FACTOR * max(row["clip_t"], 0.0)}


def metrics_in(cells: Sequence[Row]) -> list[str]:
    """The metrics that every picture has, the paper's first."""
    names = ["clip_t", SCALED, *IMAGE[:2], TEXT[1], *IMAGE[2:], *TRUTH]
    pictures = [picture for cell in cells for picture in cell["rows"]]
    some = [COLOURS] if any(COLOURS in picture for picture in pictures) else []
    known = (*names, COLOURS, *FACTS)
    names += [name for name in pictures[0] if name not in known]  # of other packages
    shared = [name for name in names if all(_is_number(row.get(name)) for row in pictures)]
    return [*shared, *some, TRADE_OFF, *([OURS] if "identity" in shared else [])]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def claims_of(
    wanted: Table, methods: Sequence[str], cells: list[Row]
) -> list[tuple[Claim, float | None]]:
    """Directions of the paper with our verdicts, and the paper's own differences where it has any.

    Fig. 7's are the nine of its text. Where the paper prints figures, each difference of them is a
    direction. What it or others claim without a figure stands in the table's own directions.
    """
    others = [name for name in methods if name != wanted.against]
    if wanted.title == "Fig. 7":
        theirs = [gap.mean for _, gap, _ in directions(as_cells())]
        return list(zip(directions(cells), theirs, strict=True))
    if not wanted.paper:
        return [(gain(cells, *direction), None) for direction in wanted.directions]

    claims = []
    for other in (name for name in others if name in wanted.paper):
        for kind in ("plain", "style"):
            figures = zip(
                wanted.paper[wanted.against][kind], wanted.paper[other][kind], strict=True
            )
            for metric, (ours, theirs) in zip(PAPERS, figures, strict=True):
                scale = CLIP_T_FACTOR if metric == "clip_t" else 1.0
                pair = (wanted.against, other) if ours > theirs else (other, wanted.against)
                if ours != theirs:
                    gap = abs(ours - theirs) / scale
                    claims.append((gain(cells, *pair, kind, metric), gap))
    return claims


def gain(cells: list[Row], better: str, worse: str, kind: str, metric: str) -> Claim:
    """The claim that a method has more of a metric than another."""
    has_both = {better, worse} <= {cell["variant"] for cell in cells}
    gap = estimate([])
    if has_both:
        gap = difference(*(by_subject(cells, name, kind, metric) for name in (better, worse)))
    return f"{better} > {worse}, {kind} {metric}", gap, verdict(gap)


def as_row(claim: Claim, theirs: float | None = None) -> Row:
    """A claim as JSON has it, with the paper's own difference where it prints one."""
    text, gap, said = claim
    facts = {"claim": text, "paper": theirs, **gap._asdict(), "verdict": said}
    return facts | {"needed": needed(gap)}


def _panels(found: list[Row], wanted: Table, metrics: Sequence[str]) -> list[str]:
    """The means, a few metrics at a time; first the paper's, with its own figures."""
    shown = {name for panel in PANELS.values() for name in panel}
    panels = PANELS | {"Beside them": tuple(name for name in metrics if name not in shown)}
    parts = []
    for title, names in panels.items():
        if {*names} & {*metrics}:
            paper = wanted.paper if title == next(iter(PANELS)) else None
            parts += [f"## {title}\n", markdown(found, names, paper)]
    return [
        *parts,
        f"`*`: differs from {wanted.against}, paired by subject, 95 % interval without 0.\n",
    ]


def _directions(claims: Sequence[tuple[Claim, float | None]]) -> str:
    """The claims as a table."""
    titles = ("the paper's direction", "the paper's difference", "ours, paired by subject")
    titles += ("smallest detectable", "verdict", "subjects that would tell")
    lines = ["## Directions\n", *table_head(titles)]
    for (claim, gap, said), theirs in claims:
        paper = "" if theirs is None else f"{theirs:+.4f}"
        ours = (span(gap), f"{gap.detectable:.4f}") if gap.n > 1 else (f"n {gap.n}", "")
        lines.append(table_line((claim, paper, *ours, said, needed(gap) or "")))
    return "\n".join([*lines, ""])


def needed(gap: Estimate) -> str | None:
    """How many subjects would tell a claim that these cannot; None where they can."""
    if gap.n < 2 or not gap.low <= 0 <= gap.high:
        return None
    return str(subjects_to_tell(gap) or f"over {MANY}")


def _account(plan: Plan, methods: Sequence[str], cells: Sequence[Row]) -> str:
    """What the table is of, in a paragraph."""
    ground = plan.ground
    subjects = {cell["subject"] for cell in cells}
    asked = len(methods) * len(plan.subjects) * plan.config.seeds
    prompts = sorted({len(cell.prompts) for cell in plan.cells.values()})
    base = "toybox" if ground.is_toybox else Path(ground.base).name
    text = (
        f"Base {base} ({ground.base_digest}), CLIP {Path(ground.clip).name}, "
        f"DINO {Path(ground.dino).name}; {len(cells)} of {asked} cells, {len(subjects)} subjects, "
        f"{' or '.join(map(str, prompts))} prompts x {plan.config.num_images_per_prompt}. "
        "Means ± half their 95 % interval over subjects. Cosines, but for clip_t x 2.5, which is "
        "the paper's CLIP-T; the paper's three are that, CLIP-I, DINO-I.\n"
    )
    if plan.config.smoke:
        text += "\n**A smoke run**: three steps teach nothing, and no figure here means anything.\n"
    return text


def missing(
    wanted: Table, plan: Plan, methods: Sequence[str], rows: Mapping[str, Row], why: Reasons
) -> list[str]:
    """What is not in a table, or not of this code, a line each."""
    lines = []
    places = {place: cell for place, cell in plan.cells.items() if place[0] in methods}
    absent = [place for place, cell in places.items() if cell.key not in rows]
    if absent:
        lines.append(f"missing: {len(absent)} of {len(places)} cells")
    for method, subject, seed in absent:
        reason = why.get(places[method, subject, seed].key)
        if reason:
            lines.append(f"failed: {method}, {subject}, seed {seed}: {reason}")

    others = [place for place, cell in places.items() if is_of_other_code(rows.get(cell.key))]
    if others:
        lines.append(f"made by other code than this: {len(others)} cells; --fresh runs them again")
    left = [name for name in wanted.methods if name not in methods]
    if left:
        lines.append(f"not asked for: {', '.join(left)}")
    unbuilt = [name for name in wanted.paper if name not in wanted.methods]
    for name in unbuilt:
        figures = wanted.paper[name]
        three = "; ".join(" ".join(f"{x:.3f}" for x in figures[kind]) for kind in figures)
        lines.append(f"in the paper and not here: {name} ({three})")
    return lines


def is_of_other_code(row: Row | None) -> bool:
    """Whether a row was made by other code than this."""
    return row is not None and row.get("code") != code_mark()
