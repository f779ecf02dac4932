"""What compressing a concept costs: the file at Stable Diffusion 1.4's sizes, and the loss against size on the toybox.

    python benchmarks/compress.py [--json FILE] [--picture FILE] [--seeds N]
    python benchmarks/compress.py --sd14 [--json FILE]

On the toybox: the bundled subjects' concepts of `toybox_quality.py` (trained if they are not there), 8 plain and 8
stylized prompts, the same seeds for every size; identity as there, and the toy CLIP's cosine to the prompt. A size is
that of the real file over that of the uncompressed fp32 file. Differences are paired, with 95 % intervals.
--sd14: 51.6 M random weights, a made-up low-rank change of them and five photos' latents: the real file, read again.
Needs 10 GB of memory and minutes. The toybox's matrices are small (64 to 160 wide), so at the same ratio their ranks
are too, and header and references, which are not compressed, take a quarter of its smallest files.
"""

import argparse
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import random_base
from PIL import Image, ImageDraw, ImageFont
from shortcuts import Measure
from toybox_quality import ASSETS, ROOT, bounds, train

from eqdiff.base import load_base
from eqdiff.concept import Concept, References, capture_concept, compress_concept, load_concept, model_for, save_concept
from eqdiff.config import preset_config
from eqdiff.data import to_pil
from eqdiff.metrics import caption, load_clip, text_scores
from eqdiff.model import EqDiff, start_rows
from eqdiff.pipeline import EqDiffPipeline
from toybox.judges import Judges

MEGABYTES = 15.0  # wanted at Stable Diffusion 1.4's sizes
SD14_NUMBERS = 51_550_000  # of the concept there: `python benchmarks/sd14.py --counts_only`, and the token rows
RATIO = MEGABYTES * 1e6 / (4 * SD14_NUMBERS)
RATIOS = (0.25, 0.1, RATIO, 0.05, 0.03)
ALLOWED = 0.01  # of identity and of CLIP-T
FIGURES = ("identity", "clip_t")
PANEL, INK, BAND, RED = (520, 260), (30, 60, 140), (205, 215, 240), (200, 40, 40)


def sd14() -> dict[str, Any]:
    """A compressed file at the true sizes: what it takes on disk, and how far its weights are from the uncompressed."""
    base = random_base()
    config = preset_config("paper", class_word="mug")
    model = EqDiff(base, start_rows(base, word="mug", n_rows=2, scale=1.0))
    with torch.no_grad():
        for weight in model.concept_parameters().values():
            if weight.ndim == 2:  # rank 8 and, a tenth as large, noise of full rank
                m, n = weight.shape
                low = torch.randn(m, 8) @ torch.randn(8, n) / 8**0.5
                weight += 2e-3 * low + 2e-4 * torch.randn(m, n)
    noise, latents = torch.randn(1, 4, 64, 64), torch.randn(5, 4, 64, 64)
    references = References(latents, torch.ones(5, 1, 64, 64), noise, tuple(f"{i}.jpg" for i in range(5)))
    concept = capture_concept(model, references, dataclasses.asdict(config), 600)
    started = time.monotonic()
    small = compress_concept(concept, model, MEGABYTES)
    seconds = time.monotonic() - started
    wanted = {name: p.detach().clone() for name, p in model.concept_parameters().items()}
    model.detach()
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (what, dtype) in {"fp32": (concept, "fp32"), "compressed": (small, "fp16")}.items():
            file = Path(folder) / f"{name}.safetensors"
            save_concept(what, file, dtype=dtype)
            sizes[name] = file.stat().st_size
        del model
        found = model_for(load_concept(file), base).concept_parameters()
    error = sum(float((found[n].detach() - w).square().sum()) for n, w in wanted.items())
    ranks = [x.shape[1] for n, x in small.parameters.items() if n.endswith(".up")]
    return {
        "numbers": sum(w.numel() for w in wanted.values()),
        "bytes_fp32": sizes["fp32"],
        "bytes_compressed": sizes["compressed"],
        "within": sizes["compressed"] <= MEGABYTES * 1e6,
        "matrices": len(ranks),
        "ranks": [min(ranks), sorted(ranks)[len(ranks) // 2], max(ranks)],
        "root_mean_square_error": math.sqrt(error / sum(w.numel() for w in wanted.values())),
        "seconds_to_compress": seconds,
    }


def variants(concept: Concept, full_bytes: int, base: Any, folder: Path) -> dict[str, Concept]:
    """By name, read from files in `folder`: the concept itself, in bf16, compressed to RATIOS."""
    model = model_for(concept, base)
    files = {"bf16": (concept, "bf16")}
    for ratio in RATIOS:
        files[f"{ratio:.4f}"] = (compress_concept(concept, model, ratio * full_bytes / 1e6), "fp16")
    model.detach()
    found = {"fp32": concept}
    for name, (what, dtype) in files.items():
        file = folder / f"{name}.safetensors"
        save_concept(what, file, dtype=dtype)
        found[name] = load_concept(file)
    return found


def measure_subject(subject: Path, pipe: EqDiffPipeline, judges: Judges, base: Any, args: Any) -> dict[str, list]:
    """Rows of every variant of one subject's concept: identity and CLIP-T of each picture, bytes and kept energy."""
    file = train(subject, args.work)
    measure, clip, concept = Measure(subject, judges, args.seeds), load_clip(str(ASSETS / "clip")), load_concept(file)
    texts = clip.texts([caption(prompt, concept.settings["class_word"]) for prompt, _ in measure.jobs])
    rows: dict[str, list] = {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = variants(concept, file.stat().st_size, base, Path(folder))
        sizes = {name: (Path(folder) / f"{name}.safetensors") for name in kinds}
        share = {n: f.stat().st_size / file.stat().st_size if f.exists() else 1.0 for n, f in sizes.items()}
    for name, kind in kinds.items():
        pipe.load_concept(kind)
        images = measure.draw(pipe, "ddim", {"num_inference_steps": args.steps})
        scores = text_scores(clip.images([to_pil(image) for image in images]), texts).tolist()
        about = {"ratio": share[name], "kept_energy": 1.0 if kind.kept_energy is None else kind.kept_energy}
        rows[name] = [r | {"clip_t": s} | about for r, s in zip(measure.rows(images), scores, strict=True)]
        pipe.unload_concept()
        means = {f: sum(r[f] for r in rows[name]) / len(rows[name]) for f in FIGURES}
        print(f"{subject.name} {name}: {means}", flush=True)
    return rows


def summarize(rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """variant -> ratio, kept energy, means, and the paired differences from fp32 with bounds."""
    table: dict[str, dict[str, Any]] = {}
    for name, part in rows.items():
        mean = {key: sum(row[key] for row in part) / len(part) for key in (*FIGURES, "context", "style")}
        table[name] = {key: sum(row[key] for row in part) / len(part) for key in ("ratio", "kept_energy")} | mean
        for key in FIGURES:
            pairs = zip(part, rows["fp32"], strict=True)
            table[name][f"{key}_loss"] = bounds([whole[key] - row[key] for row, whole in pairs])
    return table


def within(row: dict[str, Any]) -> bool:
    """Whether the mean losses of both figures are at most ALLOWED."""
    return all(row[f"{key}_loss"][0] <= ALLOWED for key in FIGURES)


def best_point(table: dict[str, dict[str, Any]]) -> str:
    """The smallest variant from which on upwards all are within ALLOWED."""
    best = "fp32"
    for name in sorted(table, key=lambda name: -table[name]["ratio"]):
        if not within(table[name]):
            break
        best = name
    return best


def panel(key: str, table: dict[str, dict[str, Any]], best: str) -> Image.Image:
    """Loss of one figure against the size, on a logarithmic axis, with its interval."""
    rows = sorted(table.values(), key=lambda row: row["ratio"])
    low = min(-ALLOWED, *(row[f"{key}_loss"][1] for row in rows))
    high = max(2 * ALLOWED, *(row[f"{key}_loss"][2] for row in rows))
    (width, height), first = PANEL, math.log(rows[0]["ratio"])

    def place(ratio: float, loss: float) -> tuple[float, float]:
        across = (math.log(ratio) - first) / -first
        return 60 + across * (width - 90), 40 + (high - loss) / (high - low) * (height - 90)

    image, font = Image.new("RGB", PANEL, "white"), ImageFont.load_default(13)
    draw = ImageDraw.Draw(image)
    edge = [place(row["ratio"], row[f"{key}_loss"][2]) for row in rows]
    edge += [place(row["ratio"], row[f"{key}_loss"][1]) for row in rows[::-1]]
    draw.polygon(edge, fill=BAND)
    for loss, colour in ((0.0, "grey"), (ALLOWED, RED)):
        draw.line([place(rows[0]["ratio"], loss), place(1, loss)], fill=colour)
        draw.text((54, place(1, loss)[1]), f"{loss:+.2f}", fill=colour, font=font, anchor="rm")
    draw.line([place(RATIO, low), place(RATIO, high)], fill="grey")
    line = [place(row["ratio"], row[f"{key}_loss"][0]) for row in rows]
    draw.line(line, fill=INK, width=2)
    for x, y in line:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=INK)
    x, y = place(table[best]["ratio"], table[best][f"{key}_loss"][0])
    draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline=RED, width=2)
    draw.text((60, 10), f"loss of {key} against file size (of fp32); red: best point", fill="black", font=font)
    for ratio in (rows[0]["ratio"], RATIO, 0.25, 0.5, 1.0):
        draw.text((place(ratio, 0)[0], height - 40), f"{100 * ratio:.3g} %", fill="black", font=font, anchor="ma")
    draw.text((place(RATIO, 0)[0], height - 20), "15 MB of SD 1.4", fill="grey", font=font, anchor="ma")
    return image


def toybox(args: argparse.Namespace) -> dict[str, Any]:
    base, judges = load_base(str(ASSETS / "base")), Judges.load(ASSETS)
    pipe, rows = EqDiffPipeline.of(base), {}
    for subject in sorted(path for path in (ROOT / "assets" / "subjects").iterdir() if path.is_dir()):
        for name, part in measure_subject(subject, pipe, judges, base, args).items():
            rows.setdefault(name, []).extend(part)
    table = summarize(rows)
    best = best_point(table)
    return {"base": base.fingerprint, "table": table, "best": best, "at_15_mb": within(table[f"{RATIO:.4f}"])}


def show(figures: dict[str, Any]) -> None:
    print(f"{'file':>8} {'size':>7} {'energy':>7}   identity (loss, 95 %)              CLIP-T (loss, 95 %)")
    for name, row in figures["table"].items():
        cells = [f"{row[k]:.4f} ({row[f'{k}_loss'][0]:+.4f}, {row[f'{k}_loss'][1]:+.4f} to {row[f'{k}_loss'][2]:+.4f})"
                 for k in FIGURES]  # fmt: skip
        print(f"{name:>8} {100 * row['ratio']:6.2f}% {100 * row['kept_energy']:6.2f}%   {'   '.join(cells)}")
    best = figures["table"][figures["best"]]
    print(f"best point: {figures['best']}, {100 * best['ratio']:.2f} % of the fp32 file")
    said = "yes" if figures["at_15_mb"] else "no"
    print(f"within {ALLOWED} at the same ratio as {MEGABYTES:g} MB is of SD 1.4's ({100 * RATIO:.2f} %): {said}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sd14", action="store_true", help="the file at Stable Diffusion 1.4's sizes, and no more")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curve there")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "quality", metavar="DIR")
    parser.add_argument("--seeds", type=int, default=1, help="pictures a prompt")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps; more changed nothing in shortcuts.py")
    args = parser.parse_args(argv)
    figures = sd14() if args.sd14 else toybox(args)
    if args.sd14:
        for name, value in figures.items():
            print(name, value)
    else:
        show(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    if args.picture and not args.sd14:
        sheet = Image.new("RGB", (PANEL[0], PANEL[1] * len(FIGURES)), "white")
        for number, key in enumerate(FIGURES):
            sheet.paste(panel(key, figures["table"], figures["best"]), (0, number * PANEL[1]))
        sheet.save(args.picture)


if __name__ == "__main__":
    main()
