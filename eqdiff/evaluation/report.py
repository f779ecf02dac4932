"""Scores of pictures -> means with intervals, a table, the best of several checkpoints.

A row is a picture: {"file", "prompt", metric: score, ...}. Some rows may lack a metric.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

METRICS = ("clip_t_cos", "clip_t_2.5", "clip_i", "dino_i", "truth_i", "truth_ceiling")
SHOWN = 3  # best and worst prompts in a table

# two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the table the usual
# approximation
T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)

Figures = dict[str, dict[str, float | int | None]]


def student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t at so many degrees of freedom, 1 or more."""
    return T95[freedom - 1] if freedom <= len(T95) else 1.96 + 2.5 / freedom


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, its 95 % bounds (Student's t, the values taken as independent), n. One value: no
    bounds."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    error = student(count - 1) * math.sqrt(variance / count)
    return {"mean": mean, "low": mean - error, "high": mean + error, "n": count}


def summarize(rows: Iterable[dict[str, Any]]) -> Figures:
    """Metric -> interval over the rows that have it."""
    values = {name: [row[name] for row in rows if name in row] for name in METRICS}
    return {name: interval(scores) for name, scores in values.items() if scores}


def by_prompt(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a prompt, as they come: {"prompt", metric: interval over its pictures}."""
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    return [
        {"prompt": prompt, **summarize([row for row in rows if row["prompt"] == prompt])}
        for prompt in prompts
    ]


def over_subjects(reports: Sequence[dict[str, Any]]) -> Figures:
    """Metric -> interval over the subjects' means, each subject counting once."""
    means = [
        {name: figure["mean"] for name, figure in report["overall"].items()} for report in reports
    ]
    return summarize(means)


def product(figures: Figures) -> float:
    """clip_t_cos x dino_i, the trade-off of text and subject; 0 where one of them is negative."""
    return max(figures["clip_t_cos"]["mean"], 0.0) * max(figures["dino_i"]["mean"], 0.0)


def best_of(reports: Sequence[dict[str, Any]]) -> int:
    """Which report has the greatest product; of equal ones the first."""
    products = [product(report["overall"]) for report in reports]
    return products.index(max(products))


def table(title: str, overall: Figures, prompts: Sequence[dict[str, Any]] = ()) -> str:
    """Lines of a fixed width: overall with its interval, then all prompts by their product, or the
    ends of that."""
    ranked = sorted(prompts, key=product, reverse=True)
    if len(ranked) > 2 * SHOWN:
        parts = {f"best {SHOWN} prompts": ranked[:SHOWN], f"worst {SHOWN} prompts": ranked[-SHOWN:]}
    else:
        parts = {"prompts": ranked} if ranked else {}
    names = list(overall)
    lines = [title, _line("", names)]
    lines.append(_line("mean", [_number(overall[name]["mean"]) for name in names]))
    lines += [
        _line(f"95 % {end}", [_number(overall[name][end]) for name in names])
        for end in ("low", "high")
    ]
    for heading, part in parts.items():
        lines.append(f"{heading}, by clip_t_cos x dino_i:")
        lines += [
            _line(f"  {row['prompt']}", [_number(row.get(n, {}).get("mean")) for n in names])
            for row in part
        ]
    return "\n".join(lines)


def _line(head: str, cells: Sequence[str]) -> str:
    return f"{head:38.38}" + "".join(f"{cell:>14}" for cell in cells)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
