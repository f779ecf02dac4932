"""How good the committed toybox is, and whether customization works on it.

    python -m studies.quality.toybox_quality [--json FILE] [--full] [--work DIR] [--parts NAME ...]
    python benchmarks/toybox_quality.py ...      the same

--full: 3 x 1,000 held-out captions instead of 240, and 8 test subjects beside the bundled ones.
Subjects are trained through the real command line; a concept that is already under --work is used
again. They are drawn by 8 plain and 8 stylized prompts x 2 seeds. The opponent is the bare base
with the best caption there is, and the class word that "ours" is taught with says as much. Parts
that are left out keep the figures that FILE has of the same base. Exits 1 when a threshold is
missed.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from eqdiff.base.load import load_base
from eqdiff.evaluation.report import interval
from eqdiff.pipeline import EqDiffPipeline
from studies.quality.subjects import (
    TOYBOX,
    WORK,
    bundled_subjects,
    instance_of,
    taught,
    write_record,
)
from toybox.customization import KINDS, Look, measure, summarize
from toybox.judge import accuracy, flat
from toybox.judges import Judges
from toybox.make_subjects import write_subject
from toybox.marks import BEST_GUIDANCE, colour_test, marks
from toybox.sheets import save_sheet
from toybox.train_judges import dino_retrieval
from toybox.train_vae import quality as vae_quality

# a test subject of each of these classes, number TEST_INDEX in its table
TEST_CLASSES = ("mug", "teapot", "car", "fish", "cat", "house", "bird", "rocket")
TEST_INDEX = 3
FIRST_PHOTO = 5000  # seed of the first test subject's first photo
PARTS = ("instruments", "base", "customization")
FULL_CAPTIONS = 1000  # a sample
FULL_SAMPLES = (0, 2, 3)  # of captions
# drawn of a subject beside the base: taught with the words of the base's best caption, and with the
# class noun alone; both also without RRA
LOOKS = ("ours", "no_rra", "noun", "noun_no_rra")
# name -> whose score less whose, kinds of prompts
GAINS = {
    "plain": ("ours", "base", ("plain",)),
    "style": ("ours", "base", ("style",)),
    "words": ("ours", "noun", KINDS),
    "rra": ("noun", "noun_no_rra", KINDS),
    "rra_beside_words": ("ours", "no_rra", KINDS),
}
# The least values, whatever was reached. Those of the base are shares of the judge's own figures on
# drawn pictures.
LEAST = {
    "vae/psnr": 25.0,
    "judge/photo/class": 0.97,
    "judge/photo/context": 0.97,
    "judge/photo/colour": 0.97,
    "judge/photo/second": 0.97,
    "judge/photo/pattern": 0.97,
    "judge/photo/emblem": 0.97,
    "judge/all/style": 0.97,
    "judge/all/class": 0.90,
    "judge/all/context": 0.90,
    "judge/all/colour": 0.90,
    "judge/all/second": 0.90,
    "judge/all/pattern": 0.90,
    "judge/all/emblem": 0.90,
    "dino/photo_retrieval": 0.90,
    "dino/style_retrieval": 0.70,
    "base/class_share": 0.98,
    "base/context_share": 0.98,
    "base/style_share": 0.97,
    "base/colour_share": 0.93,
    "base/second_share": 0.80,
    "base/pattern_share": 0.80,
    "base/emblem_share": 0.60,
    "plain/gap_closed_ours": 0.60,
    "style/gap_closed_ours": 0.50,
    "plain/colour_ours": 0.90,
    "plain/context_kept_ours": -0.05,
    "plain/style_kept_ours": -0.05,
    "style/context_kept_ours": -0.05,
    "style/style_kept_ours": -0.05,
    "plain/gain_low": 0.0,
    "style/gain_low": 0.0,
    "rra/gain_low": 0.0,
}
MOST = {"base/frechet_ratio": 3.0, "plain/colours_ratio_ours": 1.5}

Figures = dict[str, float]


def subjects(full: bool, work: Path) -> list[Path]:
    """Folders of photos: the bundled ones; with `full` also eight of the test table, in `work`."""
    folders = bundled_subjects()
    if full:
        for number, name in enumerate(TEST_CLASSES):
            folder = work / "photos" / f"test_{name}"
            write_subject(folder, "test", name, TEST_INDEX, first=FIRST_PHOTO + 100 * number)
            folders.append(folder)
    return folders


def instruments(judges: Judges, pipe: EqDiffPipeline) -> Figures:
    """Figures of VAE, judge and DINO on drawn pictures."""
    figures = {f"vae/{name}": value for name, value in vae_quality(pipe.vae).items()}
    figures |= {f"judge/{name}": value for name, value in flat(accuracy(judges.judge)).items()}
    figures |= {f"dino/{name}": value for name, value in dino_retrieval(judges.dino).items()}
    return figures


def base_quality(
    pipe: EqDiffPipeline, judges: Judges, count: int, samples: Sequence[int], sheet: Path
) -> Figures:
    """Figures of the bare base on `count` held-out captions a sample; draws some as `sheet`.

    They are means over the samples: one set of instances is .001 of the Fréchet distance from
    another. The crude test of colour words keeps its own guidance.
    """
    found = []
    for number, sample in enumerate(samples):
        pairs = count // 5 if number == 0 else 0
        figures, images = marks(pipe, judges, count, pairs, BEST_GUIDANCE, sample)
        figures["frechet_ratio"] = figures["frechet"] / figures["frechet_floor"]
        found.append(figures)
        if number == 0:
            save_sheet(sheet, images[:80], columns=10)

    means = {
        name: fmean(figures[name] for figures in found if name in figures) for name in found[0]
    }
    means |= {
        f"frechet_ratio_{sample}": figures["frechet_ratio"]
        for sample, figures in zip(samples, found, strict=True)
    }
    means |= vars(colour_test(pipe))
    means |= {"captions": count * len(samples)}
    means |= {"guidance_first": BEST_GUIDANCE[0], "guidance_last": BEST_GUIDANCE[-1]}
    return {f"base/{name}": value for name, value in means.items()}


def looks_of(subject: Path, work: Path) -> dict[str, Look]:
    """The pictures that a subject is judged by, named as in LOOKS; the preset trains twice."""
    words, noun = (taught(subject, phrase, work) for phrase in ("words", "noun"))
    without = {"rra": False}
    looks = (Look(words), Look(words, without), Look(noun), Look(noun, without))
    return dict(zip(LOOKS, looks, strict=True))


def customization(
    full: bool, pipe: EqDiffPipeline, judges: Judges, work: Path
) -> tuple[Figures, list[dict[str, Any]]]:
    """Figures of the preset over all subjects, and a row a picture.

    Gains are paired, with 95 % bounds.
    """
    rows = []
    for subject in subjects(full, work):
        who = instance_of(subject)
        part, pictures = measure(who, subject.name, pipe, judges, looks_of(subject, work))
        rows += part
        sheet = torch.cat([pictures["ours"], pictures["base"]])
        save_sheet(work / f"{subject.name}.png", sheet, columns=16)

    figures = summarize(rows, LOOKS)
    for name, (one, other, kinds) in GAINS.items():
        gain = interval([row[one] - row[other] for row in rows if row["kind"] in kinds])
        figures[f"{name}/gain"] = gain["mean"]
        figures[f"{name}/gain_low"] = gain["low"]
        figures[f"{name}/gain_high"] = gain["high"]
    return figures, rows


def timed(what: str, action: Callable[[], Figures]) -> Figures:
    """Runs an action; prints its seconds and its figures."""
    started = time.monotonic()
    figures = action()
    print(f"{what}: {time.monotonic() - started:.0f} s", flush=True)
    for name, value in figures.items():
        print(f"  {name:32} {value:.4f}", flush=True)
    return figures


def known(path: Path | None, base: str) -> tuple[Figures, list[dict[str, Any]]]:
    """The figures and rows of a file of an earlier run, if it is of this base."""
    if path is None or not path.is_file():
        return {}, []
    record = json.loads(path.read_text())
    if record["base"] != base:
        return {}, []
    measured = {name: value for name, value in record["figures"].items() if value is not None}
    return measured, record["rows"]


def missed(figures: Figures) -> dict[str, str]:
    """figure -> what is wrong, for those beyond their threshold, not finite or not measured."""

    def measured(name: str) -> float:
        return figures.get(name, math.nan)

    low = {
        name: f"{measured(name):.4f} < {least}"
        for name, least in LEAST.items()
        if not measured(name) >= least
    }
    high = {
        name: f"{measured(name):.4f} > {most}"
        for name, most in MOST.items()
        if not measured(name) <= most
    }
    return low | high


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--full", action="store_true", help="3,000 captions, 8 test subjects more")
    parser.add_argument("--captions", type=int, default=240, help="held-out captions for the base")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="NAME")
    args = parser.parse_args(argv)

    args.work.mkdir(parents=True, exist_ok=True)
    base = load_base(str(TOYBOX / "base"))
    judges = Judges.load(TOYBOX)
    pipe = EqDiffPipeline.of(base)
    count = FULL_CAPTIONS if args.full else args.captions
    samples = FULL_SAMPLES if args.full else FULL_SAMPLES[:1]
    figures, rows = known(args.json, base.fingerprint)

    def customized() -> Figures:
        found, rows[:] = customization(args.full, pipe, judges, args.work)
        return found

    parts = {
        "instruments": lambda: instruments(judges, pipe),
        "base": lambda: base_quality(pipe, judges, count, samples, args.work / "base.png"),
        "customization": customized,
    }
    for name in args.parts:
        figures |= timed(name, parts[name])

    misses = missed(figures)
    if args.json:
        facts = {"base": base.fingerprint, "figures": figures, "missed": misses}
        write_record(args.json, facts, rows)
    for name, reason in misses.items():
        print(f"missed: {name} {reason}")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
