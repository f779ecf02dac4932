"""Scores of pictures -> means with intervals, a table, a curve over checkpoints, the best of them.

A row is a picture: {"file", "prompt", metric: score, ...}. Some rows may lack a metric.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

METRICS = ("clip_t_cos", "clip_t_2.5", "clip_i", "dino_i", "truth_i", "truth_ceiling")
CURVES = ("clip_t_cos", "clip_i", "dino_i", "truth_i")
SHOWN = 3  # best and worst prompts in a table
PANEL, MARGIN = (420, 220), (64, 34)  # a curve's panel and the room left of and above its axes [pixels]
INK, BAND, BEST = (30, 60, 140), (205, 215, 240), (200, 40, 40)

Figures = dict[str, dict[str, float | int | None]]


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, its 95 % bounds (normal approximation, the values taken as independent), n. One value: no bounds."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    error = 1.96 * math.sqrt(variance / count)
    return {"mean": mean, "low": mean - error, "high": mean + error, "n": count}


def summarize(rows: Iterable[dict[str, Any]]) -> Figures:
    """Metric -> interval over the rows that have it."""
    values = {name: [row[name] for row in rows if name in row] for name in METRICS}
    return {name: interval(scores) for name, scores in values.items() if scores}


def by_prompt(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a prompt, as they come: {"prompt", metric: interval over its pictures}."""
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    return [{"prompt": prompt, **summarize([row for row in rows if row["prompt"] == prompt])} for prompt in prompts]


def over_subjects(reports: Sequence[dict[str, Any]]) -> Figures:
    """Metric -> interval over the subjects' means, each subject counting once."""
    means = [{name: figure["mean"] for name, figure in report["overall"].items()} for report in reports]
    return summarize(means)


def product(figures: Figures) -> float:
    """clip_t_cos x dino_i, the trade-off of text and subject; 0 where one of them is negative."""
    return max(figures["clip_t_cos"]["mean"], 0.0) * max(figures["dino_i"]["mean"], 0.0)


def best_of(reports: Sequence[dict[str, Any]]) -> int:
    """Which report has the greatest product; of equal ones the first."""
    products = [product(report["overall"]) for report in reports]
    return products.index(max(products))


def table(title: str, overall: Figures, prompts: Sequence[dict[str, Any]] = ()) -> str:
    """Lines of a fixed width: overall with its interval, then all prompts by their product, or the ends of that."""
    ranked = sorted(prompts, key=product, reverse=True)
    if len(ranked) > 2 * SHOWN:
        parts = {f"best {SHOWN} prompts": ranked[:SHOWN], f"worst {SHOWN} prompts": ranked[-SHOWN:]}
    else:
        parts = {"prompts": ranked} if ranked else {}
    names = list(overall)
    lines = [title, _line("", names)]
    lines.append(_line("mean", [_number(overall[name]["mean"]) for name in names]))
    lines += [_line(f"95 % {end}", [_number(overall[name][end]) for name in names]) for end in ("low", "high")]
    for heading, part in parts.items():
        lines.append(f"{heading}, by clip_t_cos x dino_i:")
        lines += [_line(f"  {row['prompt']}", [_number(row.get(n, {}).get("mean")) for n in names]) for row in part]
    return "\n".join(lines)


def curve(reports: Sequence[dict[str, Any]], best: int) -> Image.Image:
    """A panel a metric over the steps (or over the order, where steps are not known), interval as a band."""
    steps = [report["step"] for report in reports]
    known = None not in steps and len(set(steps)) == len(steps)
    at = steps if known else list(range(1, len(reports) + 1))
    order = sorted(range(len(at)), key=at.__getitem__)
    names = [name for name in CURVES if all(name in report["overall"] for report in reports)]
    sheet = Image.new("RGB", (2 * PANEL[0], math.ceil(len(names) / 2) * PANEL[1]), "white")
    for number, name in enumerate(names):
        figures = [reports[i]["overall"][name] for i in order]
        title = f"{name}, by {'step' if known else 'order'}; best at {at[best]}"
        panel = _panel(title, [at[i] for i in order], figures, at[best])
        sheet.paste(panel, (number % 2 * PANEL[0], number // 2 * PANEL[1]))
    return sheet


def _panel(title: str, at: Sequence[int], figures: Sequence[dict[str, Any]], best: int) -> Image.Image:
    """One metric: its band and line, the best step marked, the axes' ends in figures."""
    means = [figure["mean"] for figure in figures]
    lows = [figure["mean"] if figure["low"] is None else figure["low"] for figure in figures]
    highs = [figure["mean"] if figure["high"] is None else figure["high"] for figure in figures]
    bottom, top = min(lows), max(highs)
    span = top - bottom or 1.0
    (width, height), (left, above) = PANEL, MARGIN
    right, below = width - 24, height - 30

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - at[0]) / (at[-1] - at[0])
        return left + across * (right - left), below - (value - bottom) / span * (below - above)

    image, font = Image.new("RGB", PANEL, "white"), ImageFont.load_default(12)
    draw = ImageDraw.Draw(image)
    there = [place(*point) for point in zip(at, highs, strict=True)]
    draw.polygon(there + [place(*point) for point in zip(at, lows, strict=True)][::-1], fill=BAND)
    draw.line([place(best, bottom), place(best, top)], fill=BEST)
    line = [place(*point) for point in zip(at, means, strict=True)]
    draw.line(line, fill=INK, width=2)
    for x, y in line:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=INK)
    draw.line([(left, above), (left, below), (right, below)], fill="black")
    draw.text((left, 8), title, fill="black", font=font)
    for value, y in ((top, above), (bottom, below)):
        draw.text((left - 6, y), f"{value:.3f}", fill="black", font=font, anchor="rm")
    for step, x in ((at[0], left), (at[-1], right)):
        draw.text((x, below + 6), str(step), fill="black", font=font, anchor="ma")
    return image


def _line(head: str, cells: Sequence[str]) -> str:
    return f"{head:38.38}" + "".join(f"{cell:>14}" for cell in cells)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
