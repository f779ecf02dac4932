"""The results of a measurement: metrics.json in each folder, one JSON of all, a curve."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.errors import UserError
from eqdiff.evaluation.chart import curve
from eqdiff.evaluation.report import best_of, product
from eqdiff.evaluation.samples import METRICS, Samples
from eqdiff.files import replacing
from eqdiff.ours import is_picture, is_report, save_picture
from eqdiff.settings.evaluate import EvalConfig
from eqdiff.settings.places import told_path
from eqdiff.wording import say


def require_ours(config: EvalConfig, folders: Sequence[Samples]) -> None:
    """Raises UserError if a stranger's file lies where a report or the curve goes.

    The file that --json names is replaced.
    """
    recognisers = {samples.folder / METRICS: is_report for samples in folders}
    if config.pick:
        picture = curve_path(config, [samples.folder for samples in folders])
        recognisers[picture] = is_picture

    for path, is_ours in recognisers.items():
        if os.path.lexists(path) and not (config.overwrite or is_ours(path)):
            raise UserError(
                f"{path}: not written by EqDiff, so it stays; move it, or add --overwrite"
            )


def curve_path(config: EvalConfig, folders: Sequence[Path]) -> Path:
    """The file of the curve: beside the JSON, else in the folder that holds all samples."""
    if config.json:
        return Path(config.json).parent / "curve.png"
    common = os.path.commonpath([folder.resolve() for folder in folders])
    return Path(common) / "curve.png"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a report, or several, atomically; the folders in it are told from the file's own.

    Raises UserError if it cannot be written.
    """
    content = _told(content, path.parent)
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _told(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A report, or a summary with reports, without absolute paths."""
    content = dict(content)
    for name in ("samples", "best"):
        if name in content:
            content[name] = told_path(content[name], folder)
    if "reports" in content:
        content["reports"] = [_told(report, folder) for report in content["reports"]]
    return content


def pick_best(config: EvalConfig, reports: list[dict[str, Any]]) -> str:
    """Draws the curve over the checkpoints, prints the best one, and returns its folder."""
    best = best_of(reports)
    picture = curve_path(config, [Path(report["samples"]) for report in reports])
    with replacing(picture) as beside:
        save_picture(curve(reports, best), beside)

    folder = reports[best]["samples"]
    value = product(reports[best]["overall"])
    say(f"best: {folder} (clip_t_cos x dino_i {value:.4f}); look at {picture}")
    return folder
