"""A study's rows as a picture: text against identity, a point a variant, plain and stylized prompts side by side."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIZE, EDGE = (560, 420), (70, 40, 30, 60)  # of a panel [pixels]; its margins left, top, right, bottom
INKS = ("#1f5fa8", "#c0392b", "#27864a", "#8e44ad", "#c77d0a", "#16818a", "#5d6d7e", "#a0522d", "#d81b60", "#4a6b1f")
AXES = ("clip_t", "identity")
TITLES = {"plain": "plain prompts", "style": "stylized prompts"}

Row = dict[str, Any]
Span = tuple[float, float]


def points(rows: Sequence[Row], kind: str) -> dict[str, dict[str, Row]]:
    """variant -> metric -> row of that prompt set."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["prompts"] == kind and row["metric"] in AXES:
            found.setdefault(row["variant"], {})[row["metric"]] = row
    return found


def bar(row: Row) -> Span:
    """Where the row's bar ends: the interval of its paired difference, laid around its mean; none without one."""
    gap = row.get("difference")
    if not gap or gap["n"] < 2:
        return row["mean"], row["mean"]
    half = (gap["high"] - gap["low"]) / 2
    return row["mean"] - half, row["mean"] + half


def span(rows: Sequence[Row], metric: str) -> Span:
    """What an axis shows: all bars of both prompt sets, and a little more."""
    ends = [end for row in rows if row["metric"] == metric and row["prompts"] in TITLES for end in bar(row)]
    room = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - room, max(ends) + room


def panel(rows: Sequence[Row], kind: str) -> Image.Image:
    """One prompt set."""
    image, font = Image.new("RGB", SIZE, "white"), ImageFont.load_default(13)
    draw, (left, top, right, bottom) = ImageDraw.Draw(image), EDGE
    x_span, y_span = (span(rows, metric) for metric in AXES)

    def x_of(value: float) -> float:
        return left + (value - x_span[0]) / (x_span[1] - x_span[0]) * (SIZE[0] - left - right)

    def y_of(value: float) -> float:
        return SIZE[1] - bottom - (value - y_span[0]) / (y_span[1] - y_span[0]) * (SIZE[1] - top - bottom)

    draw.rectangle((left, top, SIZE[0] - right, SIZE[1] - bottom), outline="grey")
    for share in (0.1, 0.5, 0.9):
        x, y = (low + share * (high - low) for low, high in (x_span, y_span))
        draw.text((x_of(x), SIZE[1] - bottom + 6), f"{x:.3f}", fill="black", font=font, anchor="ma")
        draw.text((left - 6, y_of(y)), f"{y:.2f}", fill="black", font=font, anchor="rm")
    draw.text((SIZE[0] // 2, 14), TITLES[kind], fill="black", font=font, anchor="ma")
    draw.text((SIZE[0] // 2, SIZE[1] - 26), "CLIP-T (cosine)", fill="black", font=font, anchor="ma")
    draw.text((6, 14), "identity with the truth", fill="black", font=font)
    for number, (variant, found) in enumerate(points(rows, kind).items()):
        ink, (text, who) = INKS[number % len(INKS)], (found[metric] for metric in AXES)
        x, y = x_of(text["mean"]), y_of(who["mean"])
        draw.line([(x_of(bar(text)[0]), y), (x_of(bar(text)[1]), y)], fill=ink)
        draw.line([(x, y_of(bar(who)[0])), (x, y_of(bar(who)[1]))], fill=ink)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=ink)
        near_edge = x > SIZE[0] - right - 9 * len(variant)
        draw.text(
            (x - 7 if near_edge else x + 7, y - 8), variant, fill=ink, font=font, anchor="rm" if near_edge else "lm"
        )
    return image


def figure(rows: Sequence[Row]) -> Image.Image:
    """Both prompt sets on the same axes. Bars: the 95 % interval of the paired difference from what the study compares
    others to, which has none itself."""
    sheet = Image.new("RGB", (SIZE[0] * len(TITLES), SIZE[1]), "white")
    for number, kind in enumerate(TITLES):
        sheet.paste(panel(rows, kind), (SIZE[0] * number, 0))
    return sheet
