"""What the measures of quality share: subjects, their concepts, their prompts, paired intervals."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eqdiff.base.schedule import sampler
from eqdiff.evaluation.report import interval
from eqdiff.files import replacing
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.places import ASSETS
from eqdiff.settings.prompts import read_prompts
from studies.reproduce import search
from studies.reproduce.estimates import for_json
from studies.reproduce.questions import RATES
from toybox.captions import describe
from toybox.instances import Instance, instance
from toybox.judges import Judges
from toybox.quality import draw_prompts
from toybox.truth import read_prompt, truth_features
from toybox.world import CONTEXT_NAMES, STYLE_NAMES

ROOT = Path(__file__).resolve().parent.parent.parent
TOYBOX = ASSETS / "toybox"
WORK = ROOT / "outputs" / "quality"  # concepts that are trained once for all measures
FIRST_POSE = 10_000  # seed of the first drawn picture that an image is compared with

# what a subject is called: by its noun, or by all that words can say of it
PHRASES: dict[str, Callable[[Instance], str]] = {
    "noun": lambda subject: subject.class_name,
    "words": describe,
}

# as the paper trains, and the rates that led so: a preset may train more
KV = (*search.KV, *RATES)

Row = dict[str, float]  # figure -> value of one picture


def bundled_subjects() -> list[Path]:
    """The folders of the bundled subjects, by name."""
    return sorted(path for path in (ASSETS / "subjects").iterdir() if path.is_dir())


def instance_of(subject: Path) -> Instance:
    """Who the subject of a folder is."""
    facts = json.loads((subject / "instance.json").read_text())
    return instance(facts["table"], facts["class"], facts["index"])


def train(subject: Path, work: Path, *flags: str) -> Path:
    """The concept of a subject under `work`; the real command line trains it if it is missing."""
    concept = work / subject.name / "concept.safetensors"
    if not concept.exists():
        words = ["--instance_data_dir", str(subject), "--output_dir", str(concept.parent)]
        script = str(ROOT / "train_eqdiff.py")
        subprocess.run([sys.executable, script, *words, "--overwrite", *flags], check=True)
    return concept


def taught(subject: Path, phrase: str, work: Path, *flags: str) -> Path:
    """The concept of a subject of the toybox, under `work`, with a class word of PHRASES."""
    word = PHRASES[phrase](instance_of(subject))
    return train(subject, work / phrase, "--class_word", word, *flags)


class Measure:
    """The 8 plain and 8 stylized prompts of a subject, and what the judges see in their pictures.

    seeds: pictures a prompt.
    """

    def __init__(self, subject: Path, judges: Judges, seeds: int) -> None:
        files = [ASSETS / "prompts" / f"toybox_{kind}.txt" for kind in ("plain", "style")]
        prompts = [prompt for file in files for prompt in read_prompts(file)]

        self.judges = judges
        self.jobs = [(prompt, number) for prompt in prompts for number in range(seeds)]
        self.seeds = [seed_of(0, prompt, number) for prompt, number in self.jobs]
        self.words = [read_prompt(prompt) for prompt, _ in self.jobs]
        self.truth = [
            truth_features(instance_of(subject), context, style, FIRST_POSE + 100 * job, judges)
            for job, (context, style) in enumerate(self.words)
        ]

    def draw(self, pipe: EqDiffPipeline, scheduler: str, options: dict[str, Any]) -> Tensor:
        """Pictures (N,3,H,W) of the jobs, in [-1,1]. options: arguments of the pipeline."""
        pipe.scheduler = sampler(scheduler, pipe.scheduler.config)
        return draw_prompts(pipe, [prompt for prompt, _ in self.jobs], self.seeds, **options)

    def rows(self, images: Tensor) -> list[Row]:
        """A row a picture: identity in [-1,1]; context and style, 1 if the prompt's, else 0."""
        features = self.judges.identity(images)
        named = self.judges.name(images)

        rows = []
        for i, (context, style) in enumerate(self.words):
            row = {"identity": float((features[i] @ self.truth[i].T).mean())}
            row["context"] = float(named["context"][i] == CONTEXT_NAMES.index(context))
            row["style"] = float(named["style"][i] == STYLE_NAMES.index(style))
            rows.append(row)
        return rows


def write_record(file: Path, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes facts and "rows" as JSON, a row a line."""
    lines = ",\n".join(json.dumps(for_json(row), separators=(",", ":")) for row in rows)
    head = json.dumps(for_json(facts), indent=1).removesuffix("\n}")
    with replacing(file) as beside:
        beside.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def mean_of(rows: Sequence[Row], figure: str) -> float:
    """The mean of a figure over pictures."""
    return sum(row[figure] for row in rows) / len(rows)


Bounds = tuple[float, float | None, float | None]


def bounds(differences: Sequence[float]) -> Bounds:
    """Mean and 95 % bounds of paired differences; None for those of a single one."""
    figures = interval(differences)
    return figures["mean"], figures["low"], figures["high"]


def with_bounds(triple: Bounds, digits: int = 3) -> str:
    """A mean with its bounds, all with their signs."""
    mean, low, high = ("?" if value is None else f"{value:+.{digits}f}" for value in triple)
    return f"({mean}, {low} to {high})"
