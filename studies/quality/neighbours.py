"""Which settings of the toybox's preset bring a subject nearest to the truth.

    python -m studies.quality.neighbours [--subjects 4] [--phrase words] [--settings NAME ...]
        [--json FILE]

Dev subjects are taught with the preset and with one to three of its settings changed: by all that
words can say of them, or with --phrase noun by their bare noun. Each concept is drawn in 8 plain
and 8 stylized prompts x 2 seeds. The gap is that between the bare base with its best caption and
the drawn truth, as in `toybox_quality`. --settings: these alone; the others keep the figures that
FILE has of the same pictures. Nouns have another FILE than words. The table `search` of
studies/reproduce/search.py asks the same with a bare noun, by the judge.
"""

import sys
from argparse import ArgumentParser as Parser
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eqdiff.errors import main_guard
from studies.quality.described import by_subject, of_dev_subjects
from studies.quality.gap import TEXT, as_text, drawn_in, place_of
from studies.quality.subjects import PHRASES, WORK, bounds, taught, write_record
from studies.quality.toybox_quality import known
from studies.reproduce.search import FOUR_PHOTOS, PREDICTED, WHOLE, WHOLE_UNET, setting
from toybox.customization import KINDS, Look, summarize

evenly = partial(setting, noisy="0")  # t
# what led: no photo filtered, the frozen UNet's predictions for class images, a faster token
leading = partial(evenly, *WHOLE, *PREDICTED, token="3e-3")
SETTINGS: dict[str, tuple[str, ...]] = {
    "half of the steps noisy": setting(),
    "half noisy, 450 steps": setting(steps=450),
    "t drawn evenly": evenly(),
    "evenly, 450 steps": evenly(steps=450),
    "evenly, rates 5e-4": evenly(rate="5e-4"),
    "evenly, token 3e-3": evenly(token="3e-3"),
    "evenly, token 1e-2": evenly(token="1e-2"),
    "evenly, 450 steps, token 3e-3": evenly(steps=450, token="3e-3"),
    "evenly, no filtered photos": evenly(*WHOLE),
    "evenly, predictions": evenly(*PREDICTED),
    "evenly, both": evenly(*WHOLE, *PREDICTED),
    "evenly, predictions, token 3e-3": evenly(*PREDICTED, token="3e-3"),
    "evenly, both, token 3e-3": leading(),
    "evenly, 450 steps, no filtered photos": evenly(*WHOLE, steps=450),
    "evenly, 450 steps, predictions": evenly(*PREDICTED, steps=450),
    "evenly, 450 steps, both": evenly(*WHOLE, *PREDICTED, steps=450),
    "evenly, 150 steps, no filtered photos": evenly(*WHOLE, steps=150),
    "evenly, 200 steps, predictions, token 3e-3": evenly(*PREDICTED, steps=200, token="3e-3"),
    "whole UNet, rate 1e-4": leading(*WHOLE_UNET, rate="1e-4"),
    "whole UNet, rate 1e-4, RRA's rate x 4": leading(*WHOLE_UNET, "--rra_rate", "4", rate="1e-4"),
    "whole UNet, rate 2e-4": leading(*WHOLE_UNET, rate="2e-4"),
    "whole UNet, rate 4e-4": leading(*WHOLE_UNET, rate="4e-4"),
    **{
        f"whole UNet, rate 2e-4, {name}": leading(*WHOLE_UNET, *flags, rate="2e-4")
        for name, flags in {
            "prior x 2": ("--prior_loss_weight", "2"),
            "mask grown": ("--mask_dilation", "0.0625"),  # by a cell of the latents
            "background x 0.25": ("--background_loss_weight", "0.25"),
            "four photos a step": FOUR_PHOTOS,
        }.items()
    },
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


def beside(before: Rows, rows: Rows) -> Rows:
    """The rows with what an earlier record has of the same pictures and they have not."""
    kept = {place_of(row): row for row in before}
    return [kept.get(place_of(row), {}) | row for row in rows]


def flags_of(text: str, flag: str, names: Iterable[str], subjects: int, work: Path) -> Parser:
    """The flags of a question to dev subjects.

    text: the module's own. flag: chooses among `names`, and becomes `names` of the namespace.
    """
    parser = Parser(description=text.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=subjects, help="of the dev table")
    parser.add_argument(
        flag, dest="names", nargs="+", choices=names, default=list(names), metavar="NAME"
    )
    parser.add_argument("--phrase", choices=PHRASES, default="words", help="what they are called")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--work", type=Path, default=work, metavar="DIR")
    return parser


def answer(
    args: Namespace, names: Iterable[str], looks_of: Callable[[Path], Mapping[str, Look]]
) -> None:
    """Draws what a question of `flags_of` asks for; prints it beside what is known, and keeps it.

    names: all that it could ask for. looks_of: how the subject of a folder is drawn.
    """
    base, rows = of_dev_subjects(args.subjects, args.work, looks_of)
    rows = beside(known(args.json, base)[1], rows)
    found = table(rows, drawn_in(rows, names))
    print(as_text(found, digits=4))
    if args.json:
        write_record(args.json, {"base": base, "figures": found}, rows)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    args = flags_of(__doc__, "--settings", SETTINGS, 4, WORK / "neighbours").parse_args(argv)

    def looks_of(folder: Path) -> dict[str, Look]:
        return {
            name: Look(taught(folder, args.phrase, args.work / name, *SETTINGS[name]))
            for name in args.names
        }

    answer(args, SETTINGS, looks_of)


if __name__ == "__main__":
    sys.exit(main())
