"""Which settings of the toybox's preset bring a described subject nearest to the truth.

    python -m studies.quality.neighbours [--subjects 4] [--settings NAME ...] [--json FILE]

Dev subjects are taught by all that words can say of them, with the preset and with one or two of
its settings changed. Each concept is drawn in 8 plain and 8 stylized prompts x 2 seeds. The gap is
that between the bare base with its best caption and the drawn truth, as in `toybox_quality`. The
table `search` of studies/reproduce/search.py asks the same with a bare noun.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.errors import main_guard
from studies.quality.described import by_subject, of_dev_subjects
from studies.quality.gap import TEXT, as_text
from studies.quality.subjects import WORK, bounds, taught, write_record
from studies.reproduce.search import EVEN, HALF, LONG, SHORT, rates_of
from toybox.customization import KINDS, Look, summarize

# name -> flags; each says its share of noisy timesteps and its steps, so that a change of the
# preset keeps what it means
SETTINGS: dict[str, tuple[str, ...]] = {
    "half of the steps noisy": (*HALF, *SHORT),
    "t drawn evenly": (*EVEN, *SHORT),
    "half noisy, 450 steps": (*HALF, *LONG),
    "evenly, 450 steps": (*EVEN, *LONG),
    "evenly, rates 5e-4": (*EVEN, *SHORT, *rates_of("5e-4")),
    "evenly, no filtered photos": (*EVEN, *SHORT, "--band_probs", "0", "0", "1"),
    "evenly, predictions": (*EVEN, *SHORT, "--prior_kind", "prediction"),
}

Rows = list[dict[str, Any]]


def table(rows: Rows, settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """kind/setting -> identity, the share of the gap closed, what it has more than the base.

    Rows are `measure`'s. The last is paired by subject, with 95 % bounds. Places and styles are
    shares of pictures against the base's.
    """
    figures = summarize(rows, settings)
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        base = by_subject(rows, kind, "base")
        for name in settings:
            own = by_subject(rows, kind, name)
            row: dict[str, Any] = {"identity": figures[f"{kind}/identity_{name}"]}
            row["closed"] = figures[f"{kind}/gap_closed_{name}"]
            row["gain"] = bounds([a - b for a, b in zip(own, base, strict=True)])
            found[f"{kind}/{name}"] = row | {
                what: figures[f"{kind}/{what}_kept_{name}"] for what in TEXT
            }
        for who in ("base", "drawn"):
            found[f"{kind}/{who}"] = {"identity": figures[f"{kind}/identity_{who}"]}
    return found


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=4, help="of the dev table")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--work", type=Path, default=WORK / "neighbours", metavar="DIR")
    args = parser.parse_args(argv)

    def looks_of(folder: Path) -> dict[str, Look]:
        return {
            name: Look(taught(folder, "words", args.work / name, *SETTINGS[name]))
            for name in args.settings
        }

    base, rows = of_dev_subjects(args.subjects, args.work, looks_of)
    found = table(rows, args.settings)
    print(as_text(found, digits=4))
    if args.json:
        write_record(args.json, {"base": base, "figures": found}, rows)


if __name__ == "__main__":
    sys.exit(main())
