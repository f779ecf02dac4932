"""How much of the gap between the base's best caption and the truth is closed, and by what.

    python -m studies.quality.gap [--json FILE] [--work DIR] [--ways NAME ...]

`toybox_quality --full` measures that gap for the preset, on the bundled and eight test subjects, 8
plain and 8 stylized prompts x 2 seeds. Here the same pictures are drawn with other guidance: by the
base with its best caption, and by concepts without RRA that look at the photos with FreeCustom in
its place: K/V alone trained, the whole UNet, or that with class images of every style too. What is
known of that caption and of the preset at their usual guidance is read from
studies/results/toybox_quality.json, picture by picture. Differences are paired by picture, as
there, with 95 % intervals. --ways: draw these alone; the others keep the pictures' figures that
FILE has of the same base, and what it has not stays out of the table. --ways alone draws none.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from eqdiff.base.load import load_base
from eqdiff.errors import main_guard, require
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.sampling.freecustom import FreeCustom
from eqdiff.settings.places import ASSETS
from eqdiff.settings.presets import PRESETS
from studies.quality.subjects import (
    KV,
    ROOT,
    TOYBOX,
    WORK,
    Measure,
    bounds,
    instance_of,
    taught,
    with_bounds,
    write_record,
)
from studies.quality.toybox_quality import known, subjects
from studies.reproduce.estimates import table_head, table_line
from studies.reproduce.search import WHOLE_UNET
from toybox.captions import best_caption
from toybox.customization import KINDS, SEEDS
from toybox.instances import Instance
from toybox.judges import Judges
from toybox.marks import STEPS
from toybox.quality import generate, guided

KNOWN = ROOT / "studies" / "results" / "toybox_quality.json"


class Way(NamedTuple):
    """How pictures are drawn: with which concept of TRAINED, None for the base; guidance.

    guidance: knots from the first step to the last, see `toybox.quality.scales_of`. freecustom: in
    place of RRA.
    """

    concept: str | None
    guidance: tuple[float, ...]
    freecustom: bool = False


# name -> what the subject is called, what training changes of the preset
WITHOUT_RRA = ("--no-rra", "--validation_steps", "0")
ALL = (*WITHOUT_RRA, *WHOLE_UNET, "--learning_rate", "1e-4")
# class images of every style, twice as many, with less guidance
CLASS_PROMPTS = str(ASSETS / "prompts" / "toybox_class.txt")
STYLED = ("--class_prompts", CLASS_PROMPTS, "--num_class_images", "64")
STYLED += ("--class_guidance_scale", "2")
TRAINED = {
    "kv": ("words", (*WITHOUT_RRA, *KV)),
    "noun": ("noun", (*WITHOUT_RRA, *KV)),
    "all": ("words", ALL),
    "styled": ("words", (*ALL, *STYLED)),
}
FALLING = (3.0, 1.0)
WAYS = {
    "base at guidance 2": Way(None, (2.0,)),
    "base at guidance 3 to 1": Way(None, FALLING),
    "FreeCustom at guidance 2": Way("kv", (2.0,), True),
    "FreeCustom at guidance 3 to 1": Way("kv", FALLING, True),
    "noun, FreeCustom at guidance 2": Way("noun", (2.0,), True),
    "whole UNet, FreeCustom at guidance 3 to 1": Way("all", FALLING, True),
    "whole UNet, styled class images, FreeCustom at guidance 3 to 1": Way("styled", FALLING, True),
}
KNOWN_WAYS = ("ours", "noun")  # of the preset, by `toybox_quality`
TEXT = ("context", "style")
SAMPLING_STEPS = PRESETS["toybox"]["num_inference_steps"]
PLACE = ("subject", "kind", "prompt", "seed")  # of a picture

Rows = list[dict[str, Any]]
Found = dict[tuple[Any, ...], dict[str, float]]  # a picture's place -> its figures


def known_rows(file: Path, fingerprint: str) -> Rows:
    """The pictures that `toybox_quality` measured on this base.

    Raises UserError if the file is of another base.
    """
    _, rows = known(file, fingerprint)
    remedy = "let python -m studies.quality.toybox_quality --full --json write it first"
    require(rows, f"{file}: of another base; {remedy}")
    return rows


def pictures(
    measure: Measure, pipe: EqDiffPipeline, way: Way, concept: Path | None, subject: Instance
) -> Tensor:
    """The measure's pictures, drawn one way. concept: None for the bare base."""
    if concept is None:
        captions = [best_caption(subject, *words) for words in measure.words]
        return generate(pipe, captions, measure.seeds, steps=STEPS, guidance=way.guidance)

    looks = guided(way.guidance, SAMPLING_STEPS)
    if way.freecustom:
        looks |= {"rra": False, "sampling_options": (FreeCustom(weight=0.0),)}
    pipe.load_concept(str(concept))
    try:
        return measure.draw(pipe, "ddim", looks)
    finally:
        pipe.unload_concept()


def drawn(
    measure: Measure,
    pipe: EqDiffPipeline,
    ways: Sequence[str],
    concepts: Mapping[str, Path],
    subject: Path,
) -> Found:
    """A picture's place -> by each of `ways` its identity, and whether place and style are right.

    concepts: of TRAINED, those that the ways want.
    """
    found: Found = {place: {} for place in places(subject.name, measure)}
    for name in ways:
        way = WAYS[name]
        concept = concepts[way.concept] if way.concept else None
        rows = measure.rows(pictures(measure, pipe, way, concept, instance_of(subject)))
        for values, row in zip(found.values(), rows, strict=True):
            values[name] = row["identity"]
            values |= {f"{name}_{what}": row[what] for what in TEXT}
    return found


def places(subject: str, measure: Measure) -> list[tuple[Any, ...]]:
    """PLACE of each of the measure's pictures."""
    kinds = [KINDS[style != "photo"] for _, style in measure.words]
    return [
        (subject, kind, prompt, number)
        for kind, (prompt, number) in zip(kinds, measure.jobs, strict=True)
    ]


def drawn_in(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Those of the names by which each row's picture was drawn."""
    return [name for name in names if all(name in row for row in rows)]


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """kind/way -> mean identity, the share of the gap closed, what it has more than the base, and
    what the preset has more than it.

    Rows have "base", "drawn" (the truth), KNOWN_WAYS and some of WAYS; all but the truth have
    whether the picture's place and style are right.
    """
    found = {}
    ways = drawn_in(rows, WAYS)
    for kind in KINDS:
        part = [row for row in rows if row["kind"] == kind]
        base, truth = (fmean(row[who] for row in part) for who in ("base", "drawn"))
        for way in (*KNOWN_WAYS, *ways):
            mean = fmean(row[way] for row in part)
            gain = bounds([row[way] - row["base"] for row in part])
            closed = (mean - base) / (truth - base)
            found[f"{kind}/{way}"] = {"identity": mean, "closed": closed, "gain": gain}
            if way in ways:
                behind = bounds([row["ours"] - row[way] for row in part])
                found[f"{kind}/{way}"]["behind"] = behind
            for what in TEXT:
                mine, theirs = (
                    fmean(row[f"{who}_{what}"] for row in part) for who in (way, "base")
                )
                found[f"{kind}/{way}"][what] = mine - theirs
        found[f"{kind}/base"] = {"identity": base}
        found[f"{kind}/drawn"] = {"identity": truth}
    return found


def as_text(found: Mapping[str, Mapping[str, Any]], digits: int = 3) -> str:
    """The table in Markdown. digits: of identity, behind the point."""
    titles = ["prompts / by", "identity", "gap closed", "more than the best caption"]
    titles += ["place, style against it [points]"]
    is_behind = any("behind" in row for row in found.values())
    lines = table_head([*titles, "ours has more than that"] if is_behind else titles)
    for name, row in found.items():
        more = with_bounds(tuple(row["gain"]), digits) if "gain" in row else ""
        closed = f"{100 * row['closed']:.0f} %" if "closed" in row else ""
        text = ", ".join(f"{100 * row[what]:+.1f}" for what in TEXT if what in row)
        cells = [name, f"{row['identity']:.{digits}f}", closed, more, text]
        if is_behind:
            behind = with_bounds(tuple(row["behind"]), digits + 1) if "behind" in row else ""
            cells.append(behind)
        lines.append(table_line(cells))
    return "\n".join(lines)


def kept_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the record has of a picture: by each way identity and TEXT; the rest is in KNOWN."""
    found = {name: row[name] for name in PLACE}
    for way in drawn_in([row], WAYS):
        found[way] = [row[way], *(int(row[f"{way}_{what}"]) for what in TEXT)]
    return found


def kept_before(file: Path | None, base: str) -> Found:
    """What the record in `file` has of a picture by the ways that it knows; {} of another base."""
    _, rows = known(file, base)
    found: Found = {}
    for row in rows:
        figures = found[place_of(row)] = {}
        for way in WAYS.keys() & row.keys():
            figures |= zip((way, *(f"{way}_{what}" for what in TEXT)), row[way], strict=True)
    return found


def place_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """PLACE of a row's picture."""
    return tuple(row[name] for name in PLACE)


def concepts_of(subject: Path, work: Path, ways: Sequence[str]) -> dict[str, Path]:
    """The concepts of TRAINED that the ways want."""
    found = {}
    for name in dict.fromkeys(WAYS[way].concept for way in ways):
        if name:
            phrase, flags = TRAINED[name]
            found[name] = taught(subject, phrase, work / name, *flags)
    return found


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--work", type=Path, default=WORK / "gap", metavar="DIR")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), metavar="NAME")
    args = parser.parse_args(argv)

    base = load_base(str(TOYBOX / "base"))
    rows = known_rows(KNOWN, base.fingerprint)
    judges, pipe = Judges.load(TOYBOX), EqDiffPipeline.of(base)
    found = kept_before(args.json, base.fingerprint)

    for folder in subjects(True, args.work) if args.ways else ():
        concepts = concepts_of(folder, args.work, args.ways)
        new = drawn(Measure(folder, judges, SEEDS), pipe, args.ways, concepts, folder)
        found |= {place: found.get(place, {}) | figures for place, figures in new.items()}
        print(folder.name, flush=True)

    rows = [row | found.get(place_of(row), {}) for row in rows]
    summary = summarize(rows)
    print(as_text(summary))
    if args.json:
        facts = {"base": base.fingerprint, "figures": summary}
        write_record(args.json, facts, [kept_of(row) for row in rows])


if __name__ == "__main__":
    sys.exit(main())
