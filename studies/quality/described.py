"""Whether a class word that says all that words can say makes a better concept than a bare noun.

    python -m studies.quality.described [--subjects 6] [--json FILE] [--work DIR]

Each dev subject of the toybox is taught twice by the preset: as "mug", and as "yellow mug with
purple dots and a green ring". Both are drawn in 8 plain and 8 stylized prompts, with the same two
seeds a prompt. The opponent is the bare base with its best caption, which says as much. Means are
over subjects, differences paired by subject, with 95 % intervals.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from eqdiff.base.load import load_base
from eqdiff.errors import main_guard
from eqdiff.pipeline import EqDiffPipeline
from studies.quality.subjects import (
    PHRASES,
    TOYBOX,
    WORK,
    bounds,
    instance_of,
    taught,
    with_bounds,
    write_record,
)
from studies.reproduce.estimates import table_head, table_line
from studies.reproduce.subjects import toybox
from toybox.captions import describe
from toybox.customization import KINDS, Look, measure
from toybox.judges import Judges

FIGURES = ("identity", "parts", "context", "style")

Rows = list[dict[str, Any]]  # a row a picture and seed, with what each phrase has


def name_of(figure: str, who: str) -> str:
    """What the rows call a figure of a phrase, "base" or "drawn"."""
    return who if figure == "identity" else f"{who}_{figure}"


def by_subject(rows: Sequence[Mapping[str, Any]], kind: str, name: str) -> list[float]:
    """Means over a subject's pictures of one kind of prompt, in the subjects' order."""
    part = [row for row in rows if row["kind"] == kind and name in row]
    subjects = dict.fromkeys(row["subject"] for row in part)
    return [fmean(row[name] for row in part if row["subject"] == one) for one in subjects]


def table(rows: Rows) -> dict[str, dict[str, Any]]:
    """kind/figure -> the mean with each phrase, of the base and of the truth, and the paired gain.

    gain: words less noun; gap: words less the base with its best caption. Both with 95 % bounds.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        for figure in FIGURES:
            means = {name: by_subject(rows, kind, name_of(figure, name)) for name in PHRASES}
            base = by_subject(rows, kind, name_of(figure, "base"))
            row: dict[str, Any] = {phrase: fmean(values) for phrase, values in means.items()}
            row["base"] = fmean(base)
            if drawn := by_subject(rows, kind, name_of(figure, "drawn")):
                row["drawn"] = fmean(drawn)
            words = means["words"]
            row["gain"] = bounds([a - b for a, b in zip(words, means["noun"], strict=True)])
            row["gap"] = bounds([a - b for a, b in zip(words, base, strict=True)])
            found[f"{kind}/{figure}"] = row
    return found


def as_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    lines = table_head(["figure", "noun", "words", "base", "drawn", "words - noun", "words - base"])
    for name, row in found.items():
        means = [f"{row[each]:.3f}" if each in row else "" for each in ("noun", "words", "base")]
        means.append(f"{row['drawn']:.3f}" if "drawn" in row else "")
        gains = [with_bounds(tuple(row[each])) for each in ("gain", "gap")]
        lines.append(table_line([name, *means, *gains]))
    return "\n".join(lines)


def of_dev_subjects(
    count: int, work: Path, looks_of: Callable[[Path], Mapping[str, Look]]
) -> tuple[str, Rows]:
    """The base's fingerprint, and `measure`'s rows of the first `count` dev subjects.

    looks_of: how the subject of a folder is drawn; it may train the concepts.
    """
    judges = Judges.load(TOYBOX)
    base = load_base(str(TOYBOX / "base"))
    pipe = EqDiffPipeline.of(base)
    rows: Rows = []
    for each in toybox(count, work / "photos", "dev"):
        subject = instance_of(each.folder)
        rows += measure(subject, each.name, pipe, judges, looks_of(each.folder))[0]
        print(f"{each.name}: {describe(subject)}", flush=True)
    return base.fingerprint, rows


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=6, help="of the dev table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--work", type=Path, default=WORK / "described", metavar="DIR")
    args = parser.parse_args(argv)

    def looks_of(folder: Path) -> dict[str, Look]:
        return {phrase: Look(taught(folder, phrase, args.work)) for phrase in PHRASES}

    base, rows = of_dev_subjects(args.subjects, args.work, looks_of)
    found = table(rows)
    print(as_text(found))
    if args.json:
        write_record(args.json, {"base": base, "figures": found}, rows)


if __name__ == "__main__":
    sys.exit(main())
