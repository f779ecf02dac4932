"""Cells -> tables: means over subjects with 95 % intervals, paired differences, verdicts on the paper's claims.

A subject is the unit: its prompts and seeds are averaged first. Intervals are Student's t over subjects.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

METRICS = ("clip_t", "clip_i", "dino_i", "identity", "context", "style", "identity x text")
PRODUCTS = {"identity x text": ("identity", "clip_t"), "dino_i x text": ("dino_i", "clip_t")}  # of a subject's means
KINDS = ("plain", "style", "all")
# two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the table the usual approximation
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
POWER80 = 0.86  # what 80 % power adds to the quantile, at about 10 degrees of freedom

Cell = dict[str, Any]
Values = dict[str, float]  # subject -> value


class Estimate(NamedTuple):
    mean: float
    low: float
    high: float
    n: int
    detectable: float  # the smallest true difference that would be seen in 80 % of such experiments


def estimate(values: Iterable[float]) -> Estimate:
    """Mean of a value a subject with its 95 % interval; one subject alone has an infinite one."""
    known = list(values)
    n, mean = len(known), fmean(known)
    if n < 2:
        return Estimate(mean, -math.inf, math.inf, n, math.inf)
    error = stdev(known) / math.sqrt(n)
    t = T95[n - 2] if n - 2 < len(T95) else 1.96 + 2.5 / (n - 1)
    return Estimate(mean, mean - t * error, mean + t * error, n, (t + POWER80) * error)


def finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for: bounds of a single subject."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_cells(folder: Path) -> list[Cell]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def common(cells: list[Cell]) -> list[Cell]:
    """The cells of the subjects that every variant has, so that means are of the same ones; all, if there is none."""
    variants = {cell["variant"] for cell in cells}
    shared = set.intersection(*({cell["subject"] for cell in cells if cell["variant"] == v} for v in variants))
    return [cell for cell in cells if cell["subject"] in shared] or cells


def by_subject(cells: list[Cell], variant: str, kind: str, metric: str) -> Values:
    """subject -> mean over seeds and over the prompts of that kind; or the product of two such means."""
    if metric in PRODUCTS:
        one, other = (by_subject(cells, variant, kind, part) for part in PRODUCTS[metric])
        return {subject: one[subject] * other[subject] for subject in one}
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell["variant"] == variant:
            rows = [row[metric] for row in cell["rows"] if kind in ("all", row["kind"])]
            found.setdefault(cell["subject"], []).append(fmean(rows))
    return {subject: fmean(values) for subject, values in found.items()}


def difference(a: Values, b: Values) -> Estimate:
    """a - b, paired by subject, over the subjects that both have."""
    return estimate(a[subject] - b[subject] for subject in sorted(a.keys() & b.keys()))


def table(cells: list[Cell], variants: Iterable[str], against: str) -> list[dict[str, Any]]:
    """A row a (variant, prompt set, metric): mean, interval, n, and the paired difference from `against`."""
    rows = []
    for variant in variants:
        for kind in KINDS:
            for metric in METRICS:
                values, other = (by_subject(cells, name, kind, metric) for name in (variant, against))
                if not values:
                    continue
                row = {"variant": variant, "prompts": kind, "metric": metric, **estimate(values.values())._asdict()}
                if variant != against and values.keys() & other.keys():
                    row["difference"] = difference(values, other)._asdict()
                rows.append(row)
    return rows


def verdict(found: Estimate) -> str:
    """Of a claim that this difference is positive."""
    if found.low > 0:
        return "holds"
    return "does not hold" if found.high < 0 else "cannot be told at this n"


def directions(cells: list[Cell]) -> list[tuple[str, Estimate, str]]:
    """The nine directions of the paper's Fig. 7: claim, the paired difference that it says is positive, verdict."""

    def gain(a: str, b: str, kind: str, metric: str) -> Estimate:
        return difference(*(by_subject(cells, variant, kind, metric) for variant in (a, b)))

    def nearer() -> Estimate:
        a, b, c = (by_subject(cells, variant, "all", "dino_i") for variant in "ABC")
        return estimate(0.25 * abs(b[s] - a[s]) - abs(c[s] - b[s]) for s in sorted(a.keys() & b.keys() & c.keys()))

    def best() -> Estimate:
        return min((gain("F", other, "all", "dino_i x text") for other in "ABCDE"), key=lambda found: found.low)

    asked: list[tuple[str, Callable[[], Estimate]]] = [
        ("B > A, image alignment (DINO-I)", lambda: gain("B", "A", "all", "dino_i")),
        ("B < A, CLIP-T", lambda: gain("A", "B", "all", "clip_t")),
        ("C within 25 % of B - A of B (DINO-I)", nearer),
        ("D > C, stylized CLIP-T", lambda: gain("D", "C", "style", "clip_t")),
        ("D < C, stylized DINO-I", lambda: gain("C", "D", "style", "dino_i")),
        ("F > D, CLIP-T", lambda: gain("F", "D", "all", "clip_t")),
        ("F > E, CLIP-T", lambda: gain("F", "E", "all", "clip_t")),
        ("F > D, stylized DINO-I", lambda: gain("F", "D", "style", "dino_i")),
        ("F best on the trade-off (CLIP-T x DINO-I)", best),
    ]
    return [(claim, found := how(), verdict(found)) for claim, how in asked]


def markdown(rows: list[dict[str, Any]], against: str, paper: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The table as text: a line a variant and prompt set; differences from `against` that exclude 0 are starred; last
    the paper's CLIP-T (x 2.5), CLIP-I and DINO-I where it gives any."""
    lines = [
        "| variant | prompts | " + " | ".join(METRICS) + " | n | the paper's three |",
        "| --- | --- | " + " | ".join("---" for _ in METRICS) + " | --- | --- |",
    ]
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        cells.setdefault((row["variant"], row["prompts"]), {})[row["metric"]] = row
    for (variant, kind), found in cells.items():
        shown = []
        for metric in METRICS:
            row = found[metric]
            gap = row.get("difference")
            star = " *" if gap and (gap["low"] > 0 or gap["high"] < 0) else ""
            bounds = f" ({row['low']:.3f} to {row['high']:.3f})" if row["n"] > 1 else ""
            shown.append(f"{row['mean']:.3f}{bounds}{star}")
        theirs = " ".join(f"{value:.3f}" for value in paper.get(variant, {}).get(kind, ()))
        lines.append(f"| {variant} | {kind} | " + " | ".join(shown) + f" | {found[METRICS[0]]['n']} | {theirs} |")
    return "\n".join([*lines, "", f"`*`: differs from {against}, paired by subject, 95 % interval without 0.", ""])


def differences(rows: list[dict[str, Any]], against: str) -> str:
    """The paired differences from `against` over all prompts, with the smallest one that could have been seen."""
    lines = [
        f"| variant less {against} | metric | paired difference | smallest detectable |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        gap = row.get("difference")
        if gap and row["prompts"] == "all" and gap["n"] > 1:
            span = f"{gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}), n {gap['n']}"
            lines.append(f"| {row['variant']} | {row['metric']} | {span} | {gap['detectable']:.4f} |")
    return "\n".join([*lines, ""])


def claims(found: list[tuple[str, Estimate, str]], theirs: list[tuple[str, Estimate, str]]) -> str:
    """The directions as text, the paper's own differences beside ours."""
    lines = [
        "| the paper's direction | the paper's difference | ours, paired by subject | smallest detectable | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (claim, e, said), (_, paper, _) in zip(found, theirs, strict=True):
        span = f"{e.mean:+.4f} ({e.low:+.4f} to {e.high:+.4f}), n {e.n}"
        lines.append(f"| {claim} | {paper.mean:+.4f} | {span} | {e.detectable:.4f} | {said} |")
    return "\n".join([*lines, ""])
