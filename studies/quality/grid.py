"""What the toybox's judge names in the pictures of a drawing run, beside what the subject is.

    python -m studies.quality.grid [SAMPLES] [--subject assets/subjects/dotted_mug]

For a person who looks at grid.png: a row a picture, in the grid's order, the judge's names in it,
and a mark where the judge names what the subject's instance.json says. Pencil sketches show no
colours, so they have none here.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from toybox.dataset import to_tensor
from toybox.instances import Instance, instance
from toybox.judge import UNKNOWN, VALUES, labels_of
from toybox.judges import Judges
from toybox.truth import read_prompt

SUBJECT = Path("assets/subjects/dotted_mug")
SHOWN = ("class", "colour", "second", "pattern", "emblem", "context", "style")


def answers(judges: Judges, samples: Path, subject: Instance) -> list[dict[str, object]]:
    """A row a picture of a manifest: its prompt, and for each attribute its name and whether right.

    Right is None where there is nothing to be right about: colours of sketches, prompts that are no
    caption of the toybox.
    """
    lines = (samples / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    pictures = [np.asarray(Image.open(samples / row["file"]).convert("RGB")) for row in found]
    named = judges.name(to_tensor(np.stack(pictures)))

    rows: list[dict[str, object]] = []
    for number, row in enumerate(found):
        place = read_prompt(row["prompt"])
        truth = labels_of(subject, *place) if place else [UNKNOWN] * len(VALUES)
        said: dict[str, object] = {"prompt": row["prompt"], "seed": row["seed"]}

        for (attribute, values), wanted in zip(VALUES.items(), truth, strict=True):
            value = int(named[attribute][number])
            said[attribute] = values[value]
            said[f"{attribute}_right"] = None if wanted == UNKNOWN else value == wanted
        rows.append(said)

    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows in Markdown, with how many are right in the last one."""
    lines = ["| picture | " + " | ".join(SHOWN) + " |", "| --- " * (len(SHOWN) + 1) + "|"]

    for row in rows:
        cells = []
        for name in SHOWN:
            right = row[f"{name}_right"]
            cells.append(str(row[name]) + ("" if right is not False else " (wrong)"))
        lines.append(f"| {row['prompt']}, {row['seed']} | " + " | ".join(cells) + " |")

    counts = []
    for name in SHOWN:
        judged = [row[f"{name}_right"] for row in rows if row[f"{name}_right"] is not None]
        counts.append(f"{sum(map(bool, judged))} of {len(judged)}")
    return "\n".join([*lines, "| right | " + " | ".join(counts) + " |"])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="What the judge names in a drawing run's pictures")
    folder = Path("outputs") / SUBJECT.name / "samples"
    parser.add_argument("samples", type=Path, nargs="?", default=folder, help="with manifest.jsonl")
    parser.add_argument("--subject", type=Path, default=SUBJECT, help="with instance.json")
    args = parser.parse_args()

    facts = json.loads((args.subject / "instance.json").read_text(encoding="utf-8"))
    subject = instance(facts["table"], facts["class"], facts["index"])
    print(table(answers(Judges.load(), args.samples, subject)))


if __name__ == "__main__":
    main()
