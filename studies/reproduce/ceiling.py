"""What the metrics say of the truth: each subject as it is, in the place and style of each prompt.

    python -m studies.reproduce.ceiling studies/results/toybox --table chosen

A picture can have less CLIP-T because it lost its words, or because it shows the subject as it is:
a rare subject is less like its class word. Drawn pictures of the very subject have lost nothing. So
what they have, through the base's VAE and in poses that no photo has, is as much as a method's
pictures can be asked for.

Writes ceiling_TABLE.json and ceiling_TABLE.md beside the cells: the table's methods and the truth,
and each method's difference from the truth, paired by subject.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from eqdiff.base.load import load_base
from eqdiff.data.sheets import to_pil
from eqdiff.errors import main_guard, require
from eqdiff.settings.places import ASSETS
from studies.reproduce.cell import Row
from studies.reproduce.drawn import side_by_side
from studies.reproduce.estimates import for_json, table
from studies.reproduce.measures import Eyes, drawn_photos, toybox_eyes, truth_scores
from studies.reproduce.methods import TABLES
from studies.reproduce.shown import means, write_page
from studies.reproduce.subjects import FIRST_PHOTO
from toybox.dataset import to_tensor
from toybox.instances import Instance, instance
from toybox.judge import through
from toybox.make_subjects import photo_scenes
from toybox.truth import drawings, read_prompt
from toybox.world import draw

TRUTH = "the truth"
POSES = 2  # a prompt
FIRST_POSE = 40_000  # seed of the first: far from every photo's
METRICS = ("identity", "clip_t", "dino_i", "context", "style")  # of a picture
# title, metric, kind of prompts, digits
COLUMNS = (
    ("identity", "identity", "all", 3),
    ("DINO-I", "dino_i", "all", 3),
    ("CLIP-T", "clip_t", "all", 3),
    ("CLIP-T, plain", "clip_t", "plain", 3),
    ("CLIP-T, stylized", "clip_t", "style", 3),
    ("place right", "context", "all", 3),
    ("style right", "style", "style", 3),
)

Asked = Sequence[tuple[str, str]]  # prompts and their kinds


def as_drawn(subject: Instance, prompts: Sequence[str]) -> np.ndarray:
    """POSES pictures of a subject for each prompt, in its place and style, uint8 (n, H, W, 3)."""
    drawn = []
    for prompt in prompts:
        context, style = read_prompt(prompt) or ("", "")
        images, _ = drawings(subject, context, style, FIRST_POSE, POSES)
        drawn.append(images)
    return np.concatenate(drawn)


@torch.no_grad()
def truth_cell(name: str, of: str, asked: Asked, vae: Any, eyes: Eyes) -> Row:
    """The truth of a subject as a cell: what CLIP, DINO and judge see in it.

    of: the subject's table in the toybox, "test" or "dev".
    """
    class_name, number = name.rsplit("_", 1)
    subject = instance(of, class_name, int(number))
    photos = [draw(scene) for scene in photo_scenes(of, class_name, int(number), FIRST_PHOTO)]

    drawn = through(vae, to_tensor(as_drawn(subject, [prompt for prompt, _ in asked])))
    pictures = [to_pil(image) for image in drawn]
    facts = [{"prompt": prompt, "kind": kind} for prompt, kind in asked for _ in range(POSES)]
    prompts = [fact["prompt"] for fact in facts]
    scores = eyes.scores(pictures, prompts, class_name, drawn_photos(photos, eyes))
    scores |= truth_scores(pictures, prompts, subject)

    rows = [
        fact | {metric: float(scores[metric][i]) for metric in METRICS}
        for i, fact in enumerate(facts)
    ]
    return {"variant": TRUTH, "subject": name, "seed": 0, "rows": rows}


def with_truth(folder: Path, methods: Sequence[str], of: str, vae: Any, eyes: Eyes) -> list[Row]:
    """The cells of these methods, as tables have them, and the truth of all their subjects.

    of: the subjects' table, "test" or "dev".

    Raises UserError if a method has no cells.
    """
    cells = side_by_side(folder, methods)
    asked = {
        cell["subject"]: list(dict.fromkeys((row["prompt"], row["kind"]) for row in cell["rows"]))
        for cell in cells
    }
    bar = tqdm(asked.items(), unit="subject")
    return [truth_cell(name, of, prompts, vae, eyes) for name, prompts in bar] + cells


def write(place: Path, record: dict[str, Any], title: str) -> None:
    """The record, and a page of it. place: of both, without their endings."""
    page = f"""# {title}, beside the truth

The subjects as they are, drawn in each prompt's place and style, {POSES} poses, through the VAE.
Means ± half their 95 % interval over subjects; `*` differs from the truth, paired by subject.

{means(record, COLUMNS)}
"""
    write_page(place, record, page)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the table's cells")
    parser.add_argument("--table", choices=sorted(TABLES), required=True, metavar="NAME")
    parser.add_argument("--methods", nargs="+", help="of the table; all if left out")
    args = parser.parse_args(argv)
    wanted = TABLES[args.table]
    methods = args.methods or list(wanted.methods)
    require(
        set(methods) <= set(wanted.methods),
        f"--methods: {args.table} has {', '.join(wanted.methods)}, no other",
    )

    vae = load_base(str(ASSETS / "toybox" / "base")).vae
    of = "dev" if wanted.dev else "test"
    cells = with_truth(args.folder, methods, of, vae, toybox_eyes())
    metrics = (*METRICS, "identity x text")
    record = for_json({"rows": table(cells, (TRUTH, *methods), TRUTH, metrics)})
    print(means(record, COLUMNS))
    write(args.folder / f"ceiling_{args.table}", record, wanted.title)


if __name__ == "__main__":
    main()
