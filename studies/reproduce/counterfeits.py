"""Which metric to believe: how each ranks drawn pictures whose truth is known exactly.

    python -m studies.reproduce.counterfeits [--subjects 25] [--json FILE]
    python -m studies.reproduce.counterfeits --cells studies/results/toybox [--json FILE]

A counterfeit is a drawn picture of the subject with 0, 1, 2 or 3 of its attributes changed, in the
place and style that the prompt asks for, or in others. True identity is the share of attributes
that are the subject's own; true text is the mean of place and style, 1 where right. A metric's rank
correlation (Spearman's) with each is over all pictures of a subject, and the mean of subjects has a
95 % interval. No network has a part in the truth.

--cells: of pictures that trained concepts drew, in a folder of cells. There the judge says what is
true.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eqdiff.errors import main_guard, require
from eqdiff.evaluation.fidelity import colour_distance, colours_of
from eqdiff.evaluation.report import interval
from eqdiff.files import replacing
from studies.reproduce.estimates import correlation, for_json
from studies.reproduce.measures import Eyes, drawn_photos, toybox_eyes
from studies.reproduce.store import Store
from studies.reproduce.subjects import FIRST_PHOTO, of_toybox
from studies.reproduce.tables import IMAGE, TEXT
from toybox.captions import plain_caption
from toybox.instances import EMBLEMS, PALETTE, PATTERNS, SHAPES, Instance, instance
from toybox.make_subjects import photo_scenes
from toybox.world import CONTEXT_NAMES, STYLE_NAMES, Scene, draw

ATTRIBUTES = ("colour", "second", "pattern", "emblem", "shape")
CHANGES = (0, 1, 2, 3)  # of the attributes
FIRST_POSE = 30_000  # seed of a counterfeit's pose: far from every photo's
TRUTHS = ("identity", "text")
METRICS = (*IMAGE, *TEXT)  # of a cell's pictures
LEAST_APART = 110.0  # RGB distance of a changed colour from the subject's other colours


@dataclass(frozen=True)
class Counterfeit:
    """A drawn picture and how true it is: identity in 0..1, text in 0, .5, 1."""

    scene: Scene
    prompt: str
    kind: str
    identity: float
    text: float


def changed(subject: Instance, names: Sequence[str], rng: np.random.Generator) -> Instance:
    """The subject with some of ATTRIBUTES changed, each to another value."""
    other = subject
    for name in names:
        if name == "pattern":
            value = _another(PATTERNS, subject.pattern, rng)
            other = replace(other, pattern=value)
        elif name == "emblem":
            other = replace(other, emblem=_another(EMBLEMS, subject.emblem, rng))
        elif name == "shape":
            other = replace(other, shape=_another(range(SHAPES), subject.shape, rng))
        else:
            other = replace(other, colours=_recoloured(other, ATTRIBUTES.index(name), rng))
    return other


def _another(values: Sequence[Any], own: Any, rng: np.random.Generator) -> Any:
    others = [value for value in values if value != own]
    return others[int(rng.integers(len(others)))]


def _recoloured(subject: Instance, place: int, rng: np.random.Generator) -> tuple[str, str, str]:
    """The colours with another one in a place, well apart from all of the subject's."""
    colours = list(subject.colours)
    known = [PALETTE[colour] for colour in colours]
    apart = [
        name
        for name, rgb in PALETTE.items()
        if min(np.linalg.norm(np.subtract(rgb, own)) for own in known) >= LEAST_APART
    ]
    free = apart or [name for name in PALETTE if name not in colours]
    colours[place] = free[int(rng.integers(len(free)))]
    return tuple(colours)  # type: ignore[return-value]


def counterfeits(subject: Instance, seed: int) -> Iterator[Counterfeit]:
    """Of a subject: each number of changes, right and wrong place and style, both prompt sets."""
    rng = np.random.default_rng(seed)
    right = (True, False)
    for number, (kind, count, place, style) in enumerate(
        product(("plain", "style"), CHANGES, right, right)
    ):
        names = [str(name) for name in rng.choice(ATTRIBUTES, count, replace=False)]
        asked_place = str(rng.choice(CONTEXT_NAMES))
        asked_style = "photo" if kind == "plain" else str(rng.choice(STYLE_NAMES[1:]))
        drawn_place = asked_place if place else _another(CONTEXT_NAMES, asked_place, rng)
        drawn_style = asked_style if style else _another(STYLE_NAMES, asked_style, rng)

        picture = changed(subject, names, rng)
        pose = FIRST_POSE + 1000 * seed + number
        yield Counterfeit(
            scene=Scene(picture, drawn_place, drawn_style, pose),
            prompt=plain_caption("{}", asked_place, asked_style),
            kind=kind,
            identity=1 - count / len(ATTRIBUTES),
            text=(place + style) / 2,
        )


def ranks(values: np.ndarray) -> np.ndarray:
    """The ranks of values (n,), equal ones sharing their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The rank correlation of two lists; nan if one of them is constant."""
    a, b = (ranks(np.asarray(values, float)) for values in (one, other))
    a = a - a.mean()
    b = b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale else float("nan")


def measured(subject: Instance, number: int, eyes: Eyes) -> list[dict[str, Any]]:
    """A row a counterfeit of a subject: its truth and what each metric says."""
    scenes = photo_scenes("test", subject.class_name, 0, FIRST_PHOTO)  # places and poses
    photos = [draw(replace(scene, instance=subject)) for scene in scenes]
    seen = drawn_photos(photos, eyes)

    fakes = list(counterfeits(subject, number))
    drawn = [draw(fake.scene) for fake in fakes]
    images = [Image.fromarray(picture.image) for picture in drawn]
    prompts = [fake.prompt for fake in fakes]
    scores = eyes.scores(images, prompts, subject.class_name, seen)
    scores["colours"] = colour_scores(photos[0], drawn)

    rows = []
    for i, fake in enumerate(fakes):
        row = {"subject": number, "class": subject.class_name, "kind": fake.kind}
        row |= {"identity": fake.identity, "text": fake.text}
        rows.append(row | {name: float(values[i]) for name, values in scores.items()})
    return rows


def drawn_rows(subjects: int) -> list[dict[str, Any]]:
    """`measured` of the first subjects of the toybox."""
    eyes = toybox_eyes()
    rows = []
    for number, (name, index) in enumerate(tqdm(of_toybox(subjects), unit="subject")):
        rows += measured(instance("test", name, index), number, eyes)
    return rows


def colour_scores(photo: Any, drawn: Sequence[Any]) -> Tensor:
    """Minus the colour difference of subjects' main colours, each inside its true mask."""

    def inside(picture: Any) -> Tensor:
        pixels = torch.from_numpy(picture.image[picture.mask > 0])
        return pixels.double() / 255

    own = colours_of(inside(photo))
    return torch.tensor([-colour_distance(own, colours_of(inside(each))) for each in drawn])


def of_cells(folder: Path) -> list[dict[str, Any]]:
    """A row a picture of a folder's cells: its truth as the judge has it, and its metrics.

    Raises UserError if there are no cells, or none of the toybox.
    """
    cells = list(Store(folder).rows().values())
    pictures = [(cell, picture) for cell in cells for picture in cell["rows"]]
    require(
        pictures and all("identity" in picture for _, picture in pictures),
        f"{folder}: no cells of the toybox; name a folder of scripts/ablation.sh",
    )
    return [
        {
            "subject": cell["subject"],
            "class": cell["class_word"],
            "kind": picture["kind"],
            "identity": picture["identity"],
            "text": (picture["context"] + picture["style"]) / 2,
            **{name: picture[name] for name in METRICS},
        }
        for cell, picture in pictures
    ]


def correlations(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each metric, prompt set and truth: the mean of subjects' rank correlations."""
    facts = ("subject", "class", "kind", *TRUTHS)
    metrics = [name for name in rows[0] if name not in facts]
    found = []
    for metric, kind, truth in product(metrics, ("plain", "style", "all"), TRUTHS):
        by_subject: dict[Any, list[dict[str, Any]]] = {}
        for row in rows:
            if kind in ("all", row["kind"]):
                by_subject.setdefault(row["subject"], []).append(row)
        each = [
            spearman([row[metric] for row in part], [row[truth] for row in part])
            for part in by_subject.values()
        ]
        known = [value for value in each if np.isfinite(value)]
        if known:
            found.append({"metric": metric, "prompts": kind, "truth": truth, **interval(known)})
    return found


def table(found: Sequence[dict[str, Any]], count: int, what: str = "counterfeits") -> str:
    """The correlations as a page's table, a line a metric and prompt set."""
    lines = [
        f"Rank correlation with the truth over {count} {what}; mean of subjects, 95 %.\n",
        "| metric | prompts | true identity | true text |",
        "| --- | --- | --- | --- |",
    ]
    by_place: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in found:
        by_place.setdefault((row["metric"], row["prompts"]), {})[row["truth"]] = row
    for (metric, kind), truths in by_place.items():
        cells = " | ".join(correlation(truths.get(truth)) for truth in TRUTHS)
        lines.append(f"| {metric} | {kind} | {cells} |")
    return "\n".join([*lines, ""])


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=25, help="each with 32 counterfeits")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--cells", type=Path, metavar="FOLDER", help="their pictures instead")
    args = parser.parse_args(argv)

    rows = of_cells(args.cells) if args.cells else drawn_rows(args.subjects)
    found = correlations(rows)
    if args.json:
        what = "pictures" if args.cells else "counterfeits"
        subjects = len({row["subject"] for row in rows})
        record = {"subjects": subjects, what: len(rows), "correlations": found}
        with replacing(args.json) as beside:
            beside.write_text(json.dumps(for_json(record), indent=1) + "\n", encoding="utf-8")
    print(table(found, len(rows), "pictures of cells" if args.cells else "counterfeits"))


if __name__ == "__main__":
    main(sys.argv[1:])
