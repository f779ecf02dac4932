"""Cells -> tables: means over subjects with 95 % intervals, paired differences, verdicts on claims.

A subject is the unit: its prompts and seeds are averaged first. Intervals are Student's t over
subjects.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from eqdiff.evaluation.report import student

# products of a subject's means
PRODUCTS = {"identity x text": ("identity", "clip_t"), "dino_i x text": ("dino_i", "clip_t")}
KINDS = ("plain", "style", "all")
POWER80 = 0.86  # what 80 % power adds to the quantile, at about 10 degrees of freedom
MANY = 200  # subjects
DIGITS = 6  # of a number in JSON
DECIDED = "ABCDEF"  # the variants of the paper's Fig. 7

Cell = dict[str, Any]
Values = dict[str, float]  # subject -> value


class Estimate(NamedTuple):
    """A mean over n subjects with its 95 % bounds.

    detectable: the smallest true difference that 80 % of such experiments would see.
    """

    mean: float
    low: float
    high: float
    n: int
    detectable: float


Claim = tuple[str, Estimate, str]  # a direction of the paper, the difference, the verdict


def estimate(values: Iterable[float]) -> Estimate:
    """Mean of one value a subject and its 95 % interval; that of one subject alone is infinite.

    Without any subject the mean is nan.
    """
    known = list(values)
    n = len(known)
    mean = fmean(known) if known else math.nan
    if n < 2:
        return Estimate(mean, -math.inf, math.inf, n, math.inf)

    error = stdev(known) / math.sqrt(n)
    t = student(n - 1)
    return Estimate(mean, mean - t * error, mean + t * error, n, (t + POWER80) * error)


def for_json(value: Any) -> Any:
    """The same, its numbers to DIGITS, and null for what JSON has none for.

    The bounds of a single subject are such.
    """
    if isinstance(value, dict):
        return {name: for_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(part) for part in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def by_subject(cells: list[Cell], variant: str, kind: str, metric: str) -> Values:
    """subject -> mean over seeds and prompts of that kind, or the product of two such means.

    Pictures that do not have the metric do not count.
    """
    if metric in PRODUCTS:
        one, other = (by_subject(cells, variant, kind, part) for part in PRODUCTS[metric])
        return {subject: one[subject] * other[subject] for subject in one.keys() & other.keys()}

    means: dict[str, list[float]] = {}
    for cell in cells:
        if cell["variant"] == variant:
            rows = [row for row in cell["rows"] if kind in ("all", row["kind"])]
            values = [row[metric] for row in rows if metric in row]
            if values:
                means.setdefault(cell["subject"], []).append(fmean(values))
    return {subject: fmean(values) for subject, values in means.items()}


def difference(a: Values, b: Values) -> Estimate:
    """a - b, paired by subject, over the subjects that both have."""
    return estimate(a[subject] - b[subject] for subject in sorted(a.keys() & b.keys()))


def table(
    cells: list[Cell], variants: Iterable[str], against: str, metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each variant, prompt set and metric.

    It has mean, interval and n, and the paired difference from the variant `against`.
    """
    rows = []
    places = (
        (variant, kind, metric) for variant in variants for kind in KINDS for metric in metrics
    )
    for variant, kind, metric in places:
        values = by_subject(cells, variant, kind, metric)
        others = by_subject(cells, against, kind, metric)
        if not values:
            continue

        row = {"variant": variant, "prompts": kind, "metric": metric}
        row |= estimate(values.values())._asdict()
        if variant != against and values.keys() & others.keys():
            row["difference"] = difference(values, others)._asdict()
        rows.append(row)
    return rows


def verdict(gap: Estimate) -> str:
    """The verdict on a claim that this difference is positive."""
    if not gap.n:
        return "no cells"
    if gap.low > 0:
        return "holds"
    return "does not hold" if gap.high < 0 else "cannot be told at this n"


def subjects_to_tell(gap: Estimate) -> int | None:
    """How many subjects would decide a claim, if mean and spread stayed as they are here.

    None: more than MANY, or not to be known from one subject.
    """
    if gap.n < 2:
        return None

    spread = (gap.high - gap.mean) / student(gap.n - 1) * math.sqrt(gap.n)
    counts = range(2, MANY + 1)
    return next((n for n in counts if student(n - 1) * spread < abs(gap.mean) * math.sqrt(n)), None)


def directions(cells: list[Cell]) -> list[Claim]:
    """The nine directions of the paper's Fig. 7, each as a difference that it says is positive."""

    def gain(a: str, b: str, kind: str, metric: str) -> Estimate:
        return difference(by_subject(cells, a, kind, metric), by_subject(cells, b, kind, metric))

    def nearer() -> Estimate:
        a, b, c = (by_subject(cells, variant, "all", "dino_i") for variant in "ABC")
        subjects = sorted(a.keys() & b.keys() & c.keys())
        return estimate(0.25 * abs(b[s] - a[s]) - abs(c[s] - b[s]) for s in subjects)

    def best() -> Estimate:
        gains = [gain("F", other, "all", "dino_i x text") for other in DECIDED if other != "F"]
        return min(gains, key=lambda gap: gap.low)

    measures: list[tuple[str, Callable[[], Estimate]]] = [
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
    gaps = [(claim, measure()) for claim, measure in measures]
    return [(claim, gap, verdict(gap)) for claim, gap in gaps]


def markdown(
    rows: list[dict[str, Any]],
    metrics: Sequence[str],
    paper: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> str:
    """The table as text, a line a prompt set and variant; metrics that no row has are left out.

    Differences that exclude 0 have a star. paper: its CLIP-T (x 2.5), CLIP-I and
    DINO-I; then there is a last column with them.
    """
    there = {row["metric"] for row in rows}
    columns = [metric for metric in metrics if metric in there]
    titles = ["variant", "prompts", *columns, "n", *(["the paper's three"] if paper else [])]
    lines = table_head(titles)

    found = {(row["variant"], row["prompts"], row["metric"]): row for row in rows}
    for kind in KINDS:
        for variant in dict.fromkeys(row["variant"] for row in rows):
            cells = [found.get((variant, kind, metric)) for metric in columns]
            known = [cell for cell in cells if cell]
            if not known:
                continue
            entries = [_entry(cell) if cell else "" for cell in cells]
            theirs = (paper or {}).get(variant, {}).get(kind, ())
            last = [" ".join(f"{value:.3f}" for value in theirs)] if paper else []
            lines.append(table_line([variant, kind, *entries, str(known[0]["n"]), *last]))
    return "\n".join([*lines, ""])


def _entry(row: dict[str, Any]) -> str:
    """A mean with its bounds, and a star if it differs."""
    gap = row.get("difference")
    star = " *" if gap and (gap["low"] > 0 or gap["high"] < 0) else ""
    return f"{plus_minus(row['mean'], row['high'])}{star}"


def plus_minus(mean: float, high: float | None, digits: int = 3) -> str:
    """A mean and half of its interval's width; one subject alone has no interval."""
    half = "" if high is None or math.isinf(high) else f" ± {high - mean:.{digits}f}"
    return f"{mean:.{digits}f}{half}"


def differences(rows: list[dict[str, Any]], against: str) -> str:
    """The paired differences from `against` over all prompts, with the smallest detectable one."""
    titles = (f"variant less {against}", "metric", "paired difference", "smallest detectable")
    lines = table_head(titles)
    for row in rows:
        gap = row.get("difference")
        if gap and row["prompts"] == "all" and gap["n"] > 1:
            figures = (span(Estimate(**gap)), f"{gap['detectable']:.4f}")
            lines.append(table_line((row["variant"], row["metric"], *figures)))
    return "\n".join([*lines, ""])


def span(gap: Estimate) -> str:
    """A difference with its bounds and n, in words."""
    return f"{gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}), n {gap.n}"


def correlation(row: Mapping[str, Any] | None) -> str:
    """A mean correlation with its bounds, if it has any; None: there is none."""
    if row is None:
        return "-"
    bounds = "" if row["low"] is None else f" ({row['low']:+.2f} to {row['high']:+.2f})"
    return f"{row['mean']:+.2f}{bounds}"


def table_head(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table in Markdown."""
    return [table_line(titles), f"|{' --- |' * len(titles)}"]


def table_line(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"
