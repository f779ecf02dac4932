"""What compressing a concept loses on the toybox, and how small a file is at SD 1.4's sizes.

    python -m studies.quality.compress [--json FILE] [--picture FILE] [--seeds N]
    python -m studies.quality.compress --sd14 [--json FILE]

On the toybox: concepts of the bundled subjects, K/V trained as in the paper, 8 plain and 8 stylized
prompts, the same seeds for every size. Measured are identity and the toy CLIP's cosine to the
prompt. A size is that of the real file over that of the uncompressed fp32 file. Differences are
paired, with 95 % intervals. The toybox's matrices are small (64 to 160 wide), so at the same ratio
their ranks are too. Header and references are not compressed and take a quarter of its smallest
files.
--sd14: see compress_sd14.py. Needs 10 GB of memory and minutes.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from eqdiff.base.load import Base, load_base
from eqdiff.concept.concept import Concept, model_for
from eqdiff.concept.file import compress_concept, load_concept, save_concept
from eqdiff.data.sheets import to_pil
from eqdiff.evaluation.metrics import caption, load_clip, text_scores
from eqdiff.pipeline import EqDiffPipeline
from studies import charts
from studies.quality.compress_sd14 import MEGABYTES, RATIO, measure_file
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

RATIOS = (0.25, 0.1, RATIO, 0.05, 0.03)
ALLOWED = 0.01  # loss of identity and of CLIP-T
FIGURES = ("identity", "clip_t")
PANEL = (5.2, 2.6)  # of the chart [inches]

Table = dict[str, dict[str, Any]]  # variant -> its figures


def variants(concept: Concept, full_bytes: int, base: Base, folder: Path) -> dict[str, Concept]:
    """The concept itself, in bf16, and compressed to RATIOS; all but the first read from files."""
    model = model_for(concept, base)
    files = {"bf16": (concept, "bf16")}
    for ratio in RATIOS:
        small = compress_concept(concept, model, ratio * full_bytes / 1e6)
        files[f"{ratio:.4f}"] = (small, "fp16")
    model.detach()

    read = {"fp32": concept}
    for name, (content, dtype) in files.items():
        file = folder / f"{name}.safetensors"
        save_concept(content, file, dtype=dtype)
        read[name] = load_concept(file)
    return read


def measure_subject(
    subject: Path, pipe: EqDiffPipeline, judges: Judges, base: Base, args: argparse.Namespace
) -> dict[str, list[Row]]:
    """Rows of every variant of a subject's concept: figures of a picture, size and kept energy."""
    file = taught(subject, "noun", args.work, *KV)
    full_bytes = file.stat().st_size
    concept = load_concept(file)
    measure = Measure(subject, judges, args.seeds)
    clip = load_clip(str(TOYBOX / "clip"))
    texts = clip.texts([caption(prompt, concept.recipe.class_word) for prompt, _ in measure.jobs])

    with tempfile.TemporaryDirectory() as folder:
        kinds = variants(concept, full_bytes, base, Path(folder))
        sizes = {path.stem: path.stat().st_size for path in Path(folder).iterdir()}

    rows: dict[str, list[Row]] = {}
    for name, kind in kinds.items():
        pipe.load_concept(kind)
        images = measure.draw(pipe, "ddim", {"num_inference_steps": args.steps})
        pipe.unload_concept()

        scores = text_scores(clip.images([to_pil(image) for image in images]), texts).tolist()
        facts = {
            "ratio": sizes.get(name, full_bytes) / full_bytes,
            "kept_energy": 1.0 if kind.kept_energy is None else kind.kept_energy,
        }
        pairs = zip(measure.rows(images), scores, strict=True)
        rows[name] = [row | {"clip_t": score} | facts for row, score in pairs]
        means = {figure: mean_of(rows[name], figure) for figure in FIGURES}
        print(f"{subject.name} {name}: {means}", flush=True)
    return rows


def summarize(rows: dict[str, list[Row]]) -> Table:
    """variant -> ratio, kept energy, means, and the losses against fp32, paired, with bounds."""
    table: Table = {}
    for name, part in rows.items():
        names = ("ratio", "kept_energy", *FIGURES, "context", "style")
        table[name] = {figure: mean_of(part, figure) for figure in names}
        for figure in FIGURES:
            pairs = zip(part, rows["fp32"], strict=True)
            losses = [whole[figure] - row[figure] for row, whole in pairs]
            table[name][f"{figure}_loss"] = bounds(losses)
    return table


def within(row: dict[str, Any]) -> bool:
    """Whether the mean losses of both figures are at most ALLOWED."""
    return all(row[f"{figure}_loss"][0] <= ALLOWED for figure in FIGURES)


def best_point(table: Table) -> str:
    """The smallest variant such that it and all larger ones are within ALLOWED."""
    best = "fp32"
    for name in sorted(table, key=lambda name: -table[name]["ratio"]):
        if not within(table[name]):
            break
        best = name
    return best


def draw_panel(axes: Axes, figure: str, table: Table, best: str) -> None:
    """Draws the loss of one figure, with its interval, against the size on a logarithmic axis."""
    rows = sorted(table.values(), key=lambda row: row["ratio"])
    ratios = [row["ratio"] for row in rows]
    means, lows, highs = zip(*(row[f"{figure}_loss"] for row in rows), strict=True)

    axes.fill_between(ratios, lows, highs, alpha=0.25, linewidth=0)
    axes.plot(ratios, means, "o-", markersize=4)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.axhline(ALLOWED, color="tab:red", linewidth=0.8, label="allowed")
    axes.axvline(RATIO, color="grey", linestyle=":", label=f"{MEGABYTES:g} MB at SD 1.4's sizes")
    point = table[best]
    axes.plot(
        point["ratio"],
        point[f"{figure}_loss"][0],
        "o",
        markersize=10,
        markerfacecolor="none",
        markeredgecolor="tab:red",
        label="best point",
    )

    axes.set(xscale="log", xlabel="file size, of fp32", ylabel=f"loss of {figure}")
    axes.set_xticks([ratios[0], RATIO, 0.25, 0.5, 1.0])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def chart(table: Table, best: str) -> Figure:
    """A panel a figure, one below the other."""
    sheet, panels = charts.panels(len(FIGURES), 1, size=PANEL)
    for axes, figure in zip(panels, FIGURES, strict=True):
        draw_panel(axes, figure, table, best)
    panels[0].legend()
    return sheet


def measure_toybox(args: argparse.Namespace) -> dict[str, Any]:
    """The table of all subjects, its best point, and whether the ratio of 15 MB is good enough."""
    base = load_base(str(TOYBOX / "base"))
    judges = Judges.load(TOYBOX)
    pipe = EqDiffPipeline.of(base)

    rows: dict[str, list[Row]] = {}
    for subject in bundled_subjects():
        for name, part in measure_subject(subject, pipe, judges, base, args).items():
            rows.setdefault(name, []).extend(part)

    table = summarize(rows)
    return {
        "base": base.fingerprint,
        "table": table,
        "best": best_point(table),
        "at_15_mb": within(table[f"{RATIO:.4f}"]),
    }


def report(figures: dict[str, Any]) -> None:
    """Prints the table of the toybox."""
    titles = ("identity (loss, 95 %)", "CLIP-T (loss, 95 %)")
    print(f"{'file':>8} {'size':>7} {'energy':>7}   {titles[0]:35}{titles[1]}")
    for name, row in figures["table"].items():
        losses = [f"{row[f]:.4f} {with_bounds(row[f'{f}_loss'], digits=4)}" for f in FIGURES]
        shares = f"{100 * row['ratio']:6.2f}% {100 * row['kept_energy']:6.2f}%"
        print(f"{name:>8} {shares}   {'   '.join(losses)}")

    best = figures["table"][figures["best"]]
    print(f"best point: {figures['best']}, {100 * best['ratio']:.2f} % of the fp32 file")
    answer = "yes" if figures["at_15_mb"] else "no"
    share = f"{MEGABYTES:g} MB of SD 1.4's file are {100 * RATIO:.2f} %"
    print(f"{share}; loss within {ALLOWED} at that ratio: {answer}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sd14", action="store_true", help="the file at SD 1.4's sizes alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the chart there, as PNG")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=1, help="pictures a prompt")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    args = parser.parse_args(argv)

    if args.sd14:
        figures = measure_file()
        for name, value in figures.items():
            print(name, value)
    else:
        figures = measure_toybox(args)
        report(figures)

    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    if args.picture and not args.sd14:
        charts.save(chart(figures["table"], figures["best"]), args.picture)


if __name__ == "__main__":
    main()
