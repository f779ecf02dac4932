"""Two subjects in one prompt: is each itself in its half, or has it become the other?

    python -m studies.quality.side_by_side [--learning_rate R] [--seeds N] [--json FILE]
        [--picture FILE] [--work DIR]

Infusion teaches each bundled subject alone. Each ordered pair is drawn in 8 places from one prompt,
`a photo of a {1} and a {2} on the beach`, by both concepts together. The judge looks at each half.
`right`: the share of the subject's drawn attributes (class, colours, pattern, emblem) that it names
there. `swapped`: of those in which the two differ, the share that is the other subject's. Beside it
stand the base, by bare nouns and with the main colours in words, and pictures drawn as they should
be, through the VAE. Means are over ordered pairs, with 95 % intervals: read them as rough, for the
pairs share their subjects.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqdiff.base.load import load_base
from eqdiff.concept.file import load_concept
from eqdiff.errors import main_guard
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.presets import preset_config
from studies.quality.subjects import (
    TOYBOX,
    WORK,
    bounds,
    bundled_subjects,
    instance_of,
    taught,
    with_bounds,
)
from studies.reproduce.estimates import table_head, table_line
from studies.reproduce.measures import PARTS
from toybox.captions import pair_caption
from toybox.instances import CLASS_NAMES, Instance
from toybox.judge import VALUES, halves, labels_of
from toybox.judges import Judges
from toybox.marks import drawn
from toybox.quality import draw_prompts
from toybox.sheets import save_sheet
from toybox.world import CONTEXT_NAMES, Scene

PLACES = CONTEXT_NAMES[:8]
FIGURES = ("right", "swapped", "class", "colour")
PROMPT = "a photo of a {1} and a {2}"

Pair = tuple[Instance, Instance]
Draw = Callable[[Pair, Sequence[int]], Tensor]  # a pair's pictures from a seed a place
Marks = dict[str, float]


def marks_of(images: Tensor, pair: Pair, judges: Judges) -> Marks:
    """FIGURES over both halves of pictures (N,3,H,W) of a pair, left and right: means in [0,1]."""
    windows = halves(images)
    labels = [dict(zip(VALUES, labels_of(one, PLACES[0], "photo"), strict=True)) for one in pair]
    shares: dict[str, list[float]] = {name: [] for name in FIGURES}

    for side in range(2):
        named = judges.name(windows[:, side])
        own, other = labels[side], labels[1 - side]
        apart = [part for part in PARTS if own[part] != other[part]]
        shares["right"] += [_share(named[part], own[part]) for part in PARTS]
        shares["swapped"] += [_share(named[part], other[part]) for part in apart]
        for part in ("class", "colour"):
            shares[part].append(_share(named[part], own[part]))

    return {name: sum(values) / len(values) for name, values in shares.items()}


def _share(named: Tensor, label: int) -> float:
    return float((named == label).float().mean())


def drawers(pipe: EqDiffPipeline, concepts: dict[Instance, Path]) -> dict[str, Draw]:
    """Who draws a pair, by name; all with the guidance and steps of the preset."""
    preset = preset_config("toybox", class_word=CLASS_NAMES[0])
    how = {
        "guidance_scale": preset.guidance_scale,
        "num_inference_steps": preset.num_inference_steps,
    }

    def by_prompts(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return draw_prompts(pipe, prompts, seeds, **how)

    def infusion(pair: Pair, seeds: Sequence[int]) -> Tensor:
        pipe.load_concept([load_concept(concepts[one]) for one in pair])
        try:
            return by_prompts([f"{PROMPT} {place}" for place in PLACES], seeds)
        finally:
            pipe.unload_concept()

    def nouns(pair: Pair, seeds: Sequence[int]) -> Tensor:
        words = PROMPT.replace("{1}", pair[0].class_name).replace("{2}", pair[1].class_name)
        return by_prompts([f"{words} {place}" for place in PLACES], seeds)

    def colours(pair: Pair, seeds: Sequence[int]) -> Tensor:
        return by_prompts([pair_caption(*pair, place, "photo") for place in PLACES], seeds)

    def truth(pair: Pair, seeds: Sequence[int]) -> Tensor:
        poses = zip(PLACES, seeds, strict=True)
        scenes = [Scene(pair[0], place, "photo", seed % 2**32, pair[1]) for place, seed in poses]
        return drawn(pipe.vae, scenes)

    return {
        "Infusion, both": infusion,
        "base, bare nouns": nouns,
        "base, main colours in words": colours,
        "drawn, through the VAE": truth,
    }


def measured(
    pairs: Sequence[Pair], draws: dict[str, Draw], judges: Judges, seeds: int
) -> tuple[dict[str, list[Marks]], Tensor]:
    """Who draws -> marks of each pair; and the first seed's pictures by the first of `draws`."""
    rows: dict[str, list[Marks]] = {name: [] for name in draws}
    shown = []
    for pair in pairs:
        for name, draw in draws.items():
            own = [
                draw(pair, [seed_of(0, f"{PROMPT} {place}", number) for place in PLACES])
                for number in range(seeds)
            ]
            rows[name].append(marks_of(torch.cat(own), pair, judges))
            if name == next(iter(draws)):
                shown.append(own[0])
        print(" and ".join(one.class_name for one in pair), flush=True)
    return rows, torch.cat(shown)


def as_text(rows: dict[str, list[Marks]]) -> str:
    """A line each of who draws: every figure with its interval over pairs."""
    lines = table_head(["drawn by", *FIGURES])
    for name, part in rows.items():
        cells = [with_bounds(bounds([row[figure] for row in part]), 2) for figure in FIGURES]
        lines.append(table_line([name, *cells]))
    return "\n".join(lines)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a row of places a pair")
    parser.add_argument("--learning_rate", default="0.3", help="of both; the preset's is 0.3")
    parser.add_argument("--work", type=Path, default=WORK / "infusion", metavar="DIR")
    parser.add_argument("--seeds", type=int, default=2, help="pictures a place")
    args = parser.parse_args(argv)

    subjects = bundled_subjects()
    words = ("--method", "infusion", "--learning_rate", args.learning_rate)
    work = args.work / args.learning_rate
    concepts = {instance_of(subject): taught(subject, "noun", work, *words) for subject in subjects}
    pipe = EqDiffPipeline.of(load_base(str(TOYBOX / "base")))
    pairs = list(permutations(concepts, 2))
    judges = Judges.load(TOYBOX)
    rows, pictures = measured(pairs, drawers(pipe, concepts), judges, args.seeds)

    print(as_text(rows))
    if args.picture:
        save_sheet(args.picture, pictures, columns=len(PLACES))
    if args.json:
        record: dict[str, Any] = {"learning_rate": float(args.learning_rate)}
        record["pairs"] = [[one.class_name for one in pair] for pair in pairs]
        args.json.write_text(json.dumps(record | {"marks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
