"""Whether two concepts can live in one model: a subject drawn with another's change of K/V weights added to its own.

    python benchmarks/two_subjects.py [--json FILE] [--work DIR] [--seeds N]

Two concepts of one base change the same cross-attention K/V weights, the first thing that `--subject A --subject B`
would have to merge; their changes are summed. Each pair of the bundled subjects (concepts of `toybox_quality.py`,
trained if they are not there), 8 plain and 8 stylized prompts for the first of the pair, the same seeds with and
without the other; with RRA on the subject's own photo, and without. Paired differences, with 95 % intervals. Pictures
of two subjects cannot be judged here: the toybox base has never seen two things in one picture.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from shortcuts import Measure
from toybox_quality import ASSETS, ROOT, bounds, train

from eqdiff.base import load_base
from eqdiff.compress import start_values
from eqdiff.concept import Concept, load_concept, model_for
from eqdiff.pipeline import EqDiffPipeline
from toybox.judges import Judges

FIGURES = ("identity", "context", "style")


def both(first: Concept, other: Concept, base: Any) -> Concept:
    """`first` with the other's change of the K/V weights added; its token rows and its RRA stay its own."""
    model = model_for(first, base)
    start = start_values(model)
    model.detach()
    merged = dict(first.parameters)
    for name in start:
        if ".attn2." in name:
            merged[name] = first.parameters[name] + other.parameters[name] - start[name].cpu()
    return dataclasses.replace(first, parameters=merged)


def measure(subjects: Sequence[Path], args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """With and without RRA: a row a picture, its figures alone and, as `..._lost`, what the other subject takes."""
    base, judges = load_base(str(ASSETS / "base")), Judges.load(ASSETS)
    pipe, rows = EqDiffPipeline.of(base), {"RRA": [], "no RRA": []}
    concepts = {subject: load_concept(train(subject, args.work)) for subject in subjects}
    alone: dict[tuple[Path, str], list[dict[str, float]]] = {}
    for first, other in permutations(subjects, 2):
        ruler = Measure(first, judges, args.seeds)
        for name, part in rows.items():
            how = {"rra": name == "RRA", "num_inference_steps": args.steps}
            if (first, name) not in alone:
                pipe.load_concept(concepts[first])
                alone[first, name] = ruler.rows(ruler.draw(pipe, "ddim", how))
                pipe.unload_concept()
            pipe.load_concept(both(concepts[first], concepts[other], base))
            found = ruler.rows(ruler.draw(pipe, "ddim", how))
            pipe.unload_concept()
            for before, after in zip(alone[first, name], found, strict=True):
                lost = {f"{key}_lost": before[key] - after[key] for key in FIGURES}
                part.append({"subject": first.name, "other": other.name, **before, **lost})
        print(f"{first.name} beside {other.name}", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "quality", metavar="DIR")
    parser.add_argument("--seeds", type=int, default=1, help="pictures a prompt")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps; more changed nothing in shortcuts.py")
    args = parser.parse_args(argv)
    subjects = sorted(path for path in (ROOT / "assets" / "subjects").iterdir() if path.is_dir())
    table: dict[str, dict[str, Any]] = {}
    for name, part in measure(subjects, args).items():
        table[name] = {key: sum(row[key] for row in part) / len(part) for key in FIGURES}
        table[name] |= {f"{key}_lost": bounds([row[f"{key}_lost"] for row in part]) for key in FIGURES}
        for key in FIGURES:
            mean, low, high = table[name][f"{key}_lost"]
            print(f"{name:>6}: {key} {table[name][key]:.3f} alone, lost {mean:+.3f} ({low:+.3f} to {high:+.3f})")
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
