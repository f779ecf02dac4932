"""Whether two concepts can live in one model: a subject drawn with another's change of K/V weights.

    python -m studies.quality.two_subjects [--json FILE] [--work DIR] [--seeds N]

Two concepts of one base change the same cross-attention K/V weights. Whoever draws both in one
picture would have to merge them; here their changes are summed. Each pair of the bundled subjects
is measured by 8 plain and 8 stylized prompts for the first of the pair, with and without the other,
from the same seeds; with RRA on the subject's own photo, and without. Differences are paired, with
95 % intervals. No prompt here names two subjects.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from eqdiff.base.load import Base, load_base
from eqdiff.concept.compress import start_values
from eqdiff.concept.concept import Concept, model_for
from eqdiff.concept.file import load_concept
from eqdiff.pipeline import EqDiffPipeline
from studies.quality.subjects import (
    KV,
    TOYBOX,
    WORK,
    Measure,
    Row,
    bounds,
    bundled_subjects,
    mean_of,
    taught,
    with_bounds,
)
from toybox.judges import Judges

FIGURES = ("identity", "context", "style")
RRA = {"RRA": True, "no RRA": False}


def both(first: Concept, other: Concept, base: Base) -> Concept:
    """`first` with the other's change of the K/V weights added; token rows and RRA stay its own."""
    model = model_for(first, base)
    start = start_values(model)
    model.detach()

    merged = dict(first.parameters)
    for name in start:
        if ".attn2." in name:
            change = other.parameters[name] - start[name].cpu()
            merged[name] = first.parameters[name] + change
    return dataclasses.replace(first, parameters=merged)


def rows_of(
    concept: Concept, ruler: Measure, pipe: EqDiffPipeline, options: dict[str, Any]
) -> list[Row]:
    """A row a picture of the ruler's prompts, drawn by a concept."""
    pipe.load_concept(concept)
    try:
        return ruler.rows(ruler.draw(pipe, "ddim", options))
    finally:
        pipe.unload_concept()


def measure(
    subjects: Sequence[Path], work: Path, seeds: int, steps: int
) -> dict[str, list[dict[str, Any]]]:
    """With and without RRA: a row a picture, its figures alone and what the other subject takes.

    The figures that are taken are called `..._lost`.
    """
    base = load_base(str(TOYBOX / "base"))
    judges = Judges.load(TOYBOX)
    pipe = EqDiffPipeline.of(base)
    rulers = {subject: Measure(subject, judges, seeds) for subject in subjects}
    concepts = {subject: load_concept(taught(subject, "noun", work, *KV)) for subject in subjects}
    options = {name: {"rra": rra, "num_inference_steps": steps} for name, rra in RRA.items()}
    alone = {
        (subject, name): rows_of(concepts[subject], rulers[subject], pipe, options[name])
        for subject in subjects
        for name in RRA
    }

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in RRA}
    for first, other in permutations(subjects, 2):
        merged = both(concepts[first], concepts[other], base)
        for name, part in rows.items():
            beside = rows_of(merged, rulers[first], pipe, options[name])
            for before, after in zip(alone[first, name], beside, strict=True):
                lost = {f"{figure}_lost": before[figure] - after[figure] for figure in FIGURES}
                part.append({"subject": first.name, "other": other.name, **before, **lost})
        print(f"{first.name} beside {other.name}", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=1, help="pictures a prompt")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    args = parser.parse_args(argv)

    table: dict[str, dict[str, Any]] = {}
    rows = measure(bundled_subjects(), args.work, args.seeds, args.steps)
    for name, part in rows.items():
        table[name] = {figure: mean_of(part, figure) for figure in FIGURES}
        for figure in FIGURES:
            lost = bounds([row[f"{figure}_lost"] for row in part])
            table[name][f"{figure}_lost"] = lost
            print(f"{name:>6}: {figure} {table[name][figure]:.3f} alone, lost {with_bounds(lost)}")

    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
