"""Trials of how to train the base: each trains for equal processor time.

    python -m toybox.trials NAME [NAME ...] [--minutes 12] [--from_run CHECKPOINT]
    python -m toybox.trials --table    what was found, in Markdown

They train from nothing, or go on from one checkpoint of the run: what wins early need not win late.

A trial is a name of TRIALS: what it changes of the recipe. All of them see the same batches in the
same order, one thread each, so that two can run side by side. Each adds a row of marks to
toybox/trials.jsonl.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from toybox.base_model import BaseLoss, Recipe, band_losses, pipeline_of, text_model, unet_model
from toybox.dataset import load as load_pictures
from toybox.dataset import to_tensor
from toybox.judges import Judges
from toybox.latents import SHARD, batch_at, load, validation
from toybox.loop import average_of, descend, with_average
from toybox.marks import colour_test, marks
from toybox.muon import Muon
from toybox.run import state_of
from toybox.schedule import linear_fall, warm_up
from toybox.sheets import save_sheet

PLAIN = Recipe(high_share=0.0, high_power=0.0)
TRIALS: dict[str, Recipe] = {
    "uniform": PLAIN,  # how the first base was trained
    "high": Recipe(),
    "high_third": Recipe(high_share=0.33),
    "high_weight_1": Recipe(high_power=1.0, high_cap=50.0),
    "high_no_weight": Recipe(high_power=0.0),
    "offset": Recipe(offset=0.1),
    "wide": Recipe(widths=(96, 128, 160, 160)),
    "wide_first": Recipe(widths=(96, 96, 128, 160)),
    "batch_32": Recipe(batch=32),
    "batch_128": Recipe(batch=128),
    "rate_low": Recipe(learning_rate=3e-4),
    "rate_high": Recipe(learning_rate=1.2e-3),
    "contrast": Recipe(contrast=0.05),
    "subject_0": Recipe(subject_weight=0.0),
    "clip_frozen": Recipe(text="clip"),
    "repa": Recipe(repa=0.5),  # latents with patches: python -m toybox.trials --patches
}
WARMUP = 100  # steps
FALL = 0.3  # the last share of the time, in which the rate falls to nothing
HELD_OUT = 256  # scenes that the loss is measured on
LOG = Path(__file__).with_name("trials.jsonl")
# a column's title -> what it is called in a row
BANDS = {"t < 250": "loss_0", "< 500": "loss_250", "< 750": "loss_500", "above": "loss_750"}
NAMED = {"colour words": "colour_followed"} | {
    name: f"{name}_share" for name in ("class", "context", "style", "colour", "pattern", "emblem")
}


def new_module(recipe: Recipe, tokenizer: CLIPTokenizer, texts: Path) -> BaseLoss:
    """UNet and text encoder from nothing, or a frozen text encoder from a folder below `texts`."""
    if recipe.text == "along":
        text = text_model(tokenizer)
    else:
        text = CLIPTextModel.from_pretrained(texts / recipe.text, dtype=torch.float32)
        text.requires_grad_(False)

    module = BaseLoss(unet_model(recipe.widths), text, recipe)
    return module.to(memory_format=torch.channels_last)


def take_weights(module: BaseLoss, checkpoint: Path) -> int:
    """Puts the weights of a checkpoint of toybox.train_base into `module`; the samples it has seen.

    Raises KeyError or RuntimeError if the checkpoint is of another architecture.
    """
    weights = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weights[name])
    return state_of(checkpoint)["samples"]


def train(
    module: BaseLoss, args: argparse.Namespace, tokenizer: CLIPTokenizer
) -> tuple[EMAModel, dict[str, float]]:
    """Trains for args.minutes of processor time: the averaged weights, and what was spent."""
    recipe = module.recipe
    data = load(args.data)
    optimizer = Muon(module, lr=recipe.learning_rate, weight_decay=1e-2)
    average = average_of(module, recipe.ema_decay)
    started = time.process_time()
    wall = time.monotonic()

    step = 0
    while (progress := (time.process_time() - started) / (60 * args.minutes)) < 1:
        batch = batch_at(data, tokenizer, recipe.batch, (args.seed, step))
        module(batch)["loss"].backward()
        share = min(warm_up(step, WARMUP), linear_fall(progress, FALL))
        descend(module, optimizer, average, recipe.learning_rate * share)
        step += 1

    return average, {
        "steps": step,
        "samples": step * recipe.batch,
        "core_minutes": args.minutes,
        "wall_minutes": round((time.monotonic() - wall) / 60, 1),
    }


def run(name: str, args: argparse.Namespace) -> dict[str, object]:
    """One trial, from nothing to its row."""
    recipe = TRIALS[name]
    torch.manual_seed(args.seed)
    base = args.assets / "base"
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32).eval()

    module = new_module(recipe, tokenizer, args.texts)
    before = take_weights(module, args.from_run) if args.from_run else 0
    average, spent = train(module, args, tokenizer)
    scenes = validation(vae, tokenizer, HELD_OUT)
    judges = Judges.load(args.assets)

    def measure(trained: BaseLoss) -> tuple[dict[str, float], torch.Tensor]:
        pipe = pipeline_of(trained, tokenizer, vae)
        colours = colour_test(pipe)
        figures, images = marks(pipe, judges, args.captions, pairs=args.pairs)
        return {**band_losses(trained, scenes), **colours.figures, **figures}, images

    with torch.no_grad():
        figures, images = with_average(module, average, measure)
    save_sheet(args.sheets / f"{name}.png", images[:80], columns=10)

    about = {"trial": name, "seed": args.seed, "samples_before": before}
    return {**about, **spent, **figures, "recipe": asdict(recipe)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown.

    Losses are in % of the first row's, what is followed or named rightly in % (of the judge's own),
    the Fréchet distance in floors.
    """
    lines = [f"| {' | '.join(('trial', 'samples', *BANDS, *NAMED, 'Fréchet'))} |"]
    lines.append("| --- " * (3 + len(BANDS) + len(NAMED)) + "|")
    for row in rows:
        cells = [f"`{row['trial']}`", f"{row['samples']:,}"]
        cells += [f"{100 * row[key] / rows[0][key]:.1f}" for key in BANDS.values()]
        cells += [f"{100 * row[key]:.0f}" for key in NAMED.values()]
        cells.append(f"{row['frechet'] / row['frechet_floor']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def add_patches(data: Path, pictures: Path, assets: Path) -> None:
    """Writes what the toy DINO sees in a dataset's pictures beside the latents made from them."""
    images = load_pictures(pictures).images
    judges = Judges.load(assets)

    for number, path in enumerate(sorted(data.glob("?????.npz"))):
        shard = dict(np.load(path))
        first = number * SHARD
        pixels = to_tensor(images[first : first + len(shard["labels"])])
        patches = judges.patches(pixels).half().numpy()
        np.savez(path, **shard | {"patches": patches})


def trial(name: str) -> str:
    """A name of TRIALS. Not argparse's `choices`, which do not allow that none is named."""
    if name not in TRIALS:
        raise argparse.ArgumentTypeError(f"{name!r}: must be one of {', '.join(TRIALS)}")
    return name


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", type=trial, metavar="NAME", help=", ".join(TRIALS))
    parser.add_argument("--minutes", type=float, default=12, help="processor time of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--captions", type=int, default=240)
    parser.add_argument("--pairs", type=int, default=0, help="pictures of two subjects to mark")

    runs = Path("runs/toybox")
    folders = {
        "--from_run": (None, "checkpoint of toybox.train_base to go on from (default: nothing)"),
        "--patches": (None, "first add what the DINO sees in these pictures"),
        "--data": (runs / "latents", "made by toybox.latents"),
        "--assets": (Path("assets/toybox"), "where parts are"),
        "--texts": (runs / "texts", "of frozen text encoders"),
        "--sheets": (runs / "trials", "for pictures of fixed captions"),
    }
    for flag, (default, words) in folders.items():
        parser.add_argument(flag, type=Path, default=default, metavar="DIR", help=words)
    parser.add_argument("--log", type=Path, default=LOG, metavar="FILE")
    parser.add_argument("--table", action="store_true", help="print the log's trials and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    if args.table:
        rows = [json.loads(line) for line in args.log.open()]
        print(table([row for row in rows if "note" not in row]))  # a note: not to be compared
        return

    torch.set_num_threads(1)
    if args.patches:
        add_patches(args.data, args.patches, args.assets)

    for name in args.names:
        row = json.dumps(run(name, args))
        with args.log.open("a") as file:
            file.write(row + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
