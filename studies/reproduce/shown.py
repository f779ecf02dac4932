"""The tables that README and docs show, taken from the JSON that studies wrote.

    python -m studies.reproduce.shown

In a page a block between `<!-- shown VIEW FILE -->` and `<!-- end -->` is written anew, FILE being
below studies/results/. So no figure is typed by hand; a test says when a page is behind its cells.

means       a line a method: what the toybox knows to be true, text, DINO-I, over all prompts
short       the same in four columns
directions  what is claimed, the difference, the verdict, and how many subjects would tell
costs       numbers trained, steps, u, seconds of a processor, drift of the base
spread      W2 of each method's pictures against the base's, and its floor
front       text that DCI gains over plain sampling of no less identity
pace        when each method comes to Custom Diffusion's final identity x text
agreement   each metric's rank correlation with the truth
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eqdiff.files import replacing
from studies.reproduce import pace
from studies.reproduce.costs import costs_as_text
from studies.reproduce.estimates import correlation, plus_minus, table_head, table_line
from studies.scripts import ROOT

PAGES = ("README.md", "assets/toybox/README.md", "docs/*.md")
RESULTS = "studies/results"
BLOCK = re.compile(r"(<!-- shown (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
# title, metric, kind of prompts, digits
COLUMNS = (
    ("identity", "identity", "all", 3),
    ("colour distance", "colours", "plain", 1),
    ("max-cosine", "max_cosine", "all", 3),
    ("CLIP-T", "clip_t", "all", 3),
    ("style right", "style", "style", 2),
    ("identity x text", "identity x text", "all", 3),
    ("DINO-I", "dino_i", "all", 3),
)
W2_TERMS = ("dino mean", "dino trace", "clip mean", "clip trace")

Column = tuple[str, str, str, int]
SHORT = tuple(
    column for column in COLUMNS if column[0] in ("identity", "CLIP-T", "identity x text")
)

Summary = dict[str, Any]


def means(found: Summary, columns: Sequence[Column] = COLUMNS) -> str:
    """A line a method; a star where the difference from the one compared with excludes 0."""
    rows = {(row["variant"], row["metric"], row["prompts"]): row for row in found["rows"]}
    methods = list(dict.fromkeys(row["variant"] for row in found["rows"]))
    columns = [column for column in columns if (methods[0], *column[1:3]) in rows]
    lines = table_head(["method", *(title for title, *_ in columns), "n"])
    for method in methods:
        found_here = [rows[method, metric, kind] for _, metric, kind, _ in columns]
        cells = [_mean(row, digits) for row, (*_, digits) in zip(found_here, columns, strict=True)]
        lines.append(table_line([method, *cells, str(found_here[0]["n"])]))
    return "\n".join(lines)


def _mean(row: dict[str, Any], digits: int) -> str:
    gap = row.get("difference")
    known = gap and None not in (gap["low"], gap["high"])
    star = " *" if known and (gap["low"] > 0 or gap["high"] < 0) else ""
    return f"{plus_minus(row['mean'], row['high'], digits)}{star}"


def directions(found: Summary) -> str:
    """A line a claim; the paper's own difference where it prints one."""
    has_paper = any(row["paper"] is not None for row in found["directions"])
    titles = ["claim", *(["the paper"] if has_paper else []), "here, 95 %", "n", "verdict"]
    lines = table_head([*titles, "subjects that would tell"])
    for row in found["directions"]:
        theirs = [] if not has_paper else [_signed(row["paper"])]
        cells = [row["claim"], *theirs, _gap(row), str(row["n"])]
        lines.append(table_line([*cells, row["verdict"], str(row.get("needed") or "")]))
    return "\n".join(lines)


def _gap(row: dict[str, Any]) -> str:
    """A difference with its bounds; one subject alone has none, and no subject no difference."""
    if row["mean"] is None:
        return ""
    bounds = "" if row["low"] is None else f" ({row['low']:+.3f} to {row['high']:+.3f})"
    return f"{row['mean']:+.3f}{bounds}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def costs(found: Summary) -> str:
    """The costs of the methods, as their own page has them."""
    _, text = costs_as_text(found["costs"]).split("\n\n", 1)
    return text.strip()


def spread(found: Summary) -> str:
    """A line a method: W2 in each term of each judge, with half of its 95 % interval."""
    lines = table_head(["method", *(f"W2, {term}" for term in W2_TERMS), "n"])
    for method, row in found["methods"].items():
        cells = [plus_minus(row[term]["mean"], row[term]["high"]) for term in W2_TERMS]
        lines.append(table_line([method, *cells, str(row[W2_TERMS[0]]["n"])]))
    return "\n".join(lines)


def front(found: Summary) -> str:
    """A line a point: plain sampling's, then DCI's with the text that it gains."""
    titles = ("method", "DINO-I", "CLIP-T", "text gained at no less DINO-I", "n", "verdict")
    lines = table_head([*titles, "subjects that would tell"])
    for row in found["points"]:
        cells = [row["method"], f"{row['dino_i']:.3f}", f"{row['clip_t']:.3f}"]
        if gap := row.get("gain"):
            cells += [_gap(gap), str(gap["n"]), row["verdict"], row["needed"] or ""]
        else:
            cells += [""] * 4
        lines.append(table_line(cells))
    return "\n".join(lines)


def agreement(found: Summary) -> str:
    """A line a metric: its rank correlation with true identity and true text, over all prompts."""
    lines = table_head(["metric", "true identity", "true text"])
    rows = [row for row in found["correlations"] if row["prompts"] == "all"]
    for name in dict.fromkeys(row["metric"] for row in rows):
        of_name = {row["truth"]: row for row in rows if row["metric"] == name}
        cells = [correlation(of_name.get(truth)) for truth in ("identity", "text")]
        lines.append(table_line([name, *cells]))
    return "\n".join(lines)


VIEWS: dict[str, Callable[[Summary], str]] = {
    "means": means,
    "short": lambda found: means(found, SHORT),
    "directions": directions,
    "costs": costs,
    "spread": spread,
    "front": front,
    "pace": pace.as_text,
    "agreement": agreement,
}


def write_page(place: Path, record: Summary, page: str) -> None:
    """A record as JSON, and a page of it. place: of both, without their endings."""
    text = json.dumps(record, indent=1) + "\n"
    for file, content in ((place.with_suffix(".json"), text), (place.with_suffix(".md"), page)):
        with replacing(file) as beside:
            beside.write_text(content, encoding="utf-8")


def filled(text: str, root: Path = ROOT) -> str:
    """A page with its blocks written anew. Raises KeyError if a block names no view."""

    def block(match: re.Match[str]) -> str:
        found = json.loads((root / RESULTS / match[3]).read_text(encoding="utf-8"))
        return f"{match[1]}{VIEWS[match[2]](found)}\n{match[4]}"

    return BLOCK.sub(block, text)


def pages(root: Path = ROOT) -> list[Path]:
    """Where blocks may stand."""
    return sorted(page for pattern in PAGES for page in root.glob(pattern))


def main() -> None:
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            with replacing(page) as beside:
                beside.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: written anew")


if __name__ == "__main__":
    main()
