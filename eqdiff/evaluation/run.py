"""A measuring run: every folder of drawn pictures, its report, and a summary of all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.evaluation.against_base import against_base
from eqdiff.evaluation.measure import Truths, measure
from eqdiff.evaluation.metrics import load_judges
from eqdiff.evaluation.report import over_subjects, table
from eqdiff.evaluation.results import pick_best, require_ours, write_json
from eqdiff.evaluation.samples import METRICS, Samples, judge_names
from eqdiff.settings.evaluate import EvalConfig
from eqdiff.wording import say

NOUNS = ("dog", "car", "tree", "house")  # classes that most subjects are not of


def evaluate(
    config: EvalConfig, folders: Sequence[Samples], truths: Truths, others: Sequence[str] = NOUNS
) -> list[Path]:
    """Measures the folders, prints their tables, and writes the reports, which it names.

    truths: draws the very subject of a toybox folder, see `measure`. others: nouns of other
    classes, for `against_base`.

    Raises UserError if a stranger's file lies where a report goes, a model cannot be loaded, or a
    picture cannot be read.
    """
    require_ours(config, folders)
    names = judge_names(config, folders)
    clip, dino = load_judges(*names)
    judges = {"clip_model": Path(names[0]).name, "dino_model": Path(names[1]).name}

    reports = []
    for samples in folders:
        report = judges | measure(samples, clip, dino, config.batch_size, truths)
        report |= against_base(samples, config, dino, clip, others)
        write_json(samples.folder / METRICS, report)
        reports.append(report)
        _show(table(_title(samples, report), report["overall"], report["prompts"]))
        _show_base(report)

    summary = _summary(config, reports)
    if config.json:
        write_json(Path(config.json), summary)
    return [samples.folder / METRICS for samples in folders]


def _show(lines: str) -> None:
    """Prints a table line by line."""
    for line in lines.split("\n"):
        say(line)


def _show_base(report: dict[str, Any]) -> None:
    """Prints what `against_base` found, if it was asked."""
    for ring, figures in report.get("latent_fisher", {}).items():
        say(f"LFD (ours), {ring}: {figures['eps']:.3g}; over sigma^2 {figures['score']:.3g}")
    for judge, figures in report.get("wasserstein", {}).items():
        terms = [f"{name} {figures[name]:.4g}" for name in ("mean", "trace")]
        floor = [f"{name} {figures[f'floor_{name}']:.4g}" for name in ("mean", "trace")]
        say(f"W2^2 (ours), {judge}: {', '.join(terms)}; floor: {', '.join(floor)}")


def _title(samples: Samples, report: dict[str, Any]) -> str:
    """The title of a folder's table: the folder, the class word and what was counted."""
    counts = [f"{len(report[name])} {name}" for name in ("images", "prompts", "photos")]
    return f"{samples.folder}: {samples.class_word}, {', '.join(counts)}"


def _summary(config: EvalConfig, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """All reports, and the best of them (--pick) or the means over several subjects, printed."""
    summary: dict[str, Any] = {"reports": reports}
    if config.pick:
        summary["best"] = pick_best(config, reports)
    elif len(reports) > 1:
        summary["overall"] = over_subjects(reports)
        _show(table(f"over {len(reports)} subjects", summary["overall"]))
    return summary
