"""Copies what a training in the cache made into assets/toybox, in fp16.

    python -m toybox.publish [--run FOLDER]
    python -m toybox.publish --trained FOLDER      what toybox.train_gpu wrote

Nothing else writes there. The base's averaged weights go into base/unet and base/text_encoder, its
marks so far into toybox/progress.jsonl. VAE, judge, tokenizer and DINO go along, as the run used
them; a GPU's training used those that are there.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from toybox.base_model import SCHEDULER, BaseLoss, text_model, unet_model
from toybox.run import recipe_of, state_of
from toybox.train_base import PARTS, cache

PROGRESS = Path(__file__).with_name("progress.jsonl")


def averaged(run: Path) -> tuple[UNet2DConditionModel, CLIPTextModel, dict[str, Any]]:
    """The averaged UNet and text encoder of the run's newest checkpoint, and its state."""
    folder = run / "checkpoint"
    state = state_of(folder)
    recipe = recipe_of(state)
    tokenizer = CLIPTokenizer.from_pretrained(run / "assets" / "base" / "tokenizer")
    module = BaseLoss(unet_model(recipe.widths), text_model(tokenizer), recipe)

    weights = load_file(folder / "average.safetensors")
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(weights[name])

    return module.unet, module.text_encoder, state


def publish(run: Path, assets: Path) -> dict[str, Any]:
    """Writes everything; returns the run's state."""
    unet, text, state = averaged(run)
    for part in PARTS:
        shutil.rmtree(assets / part, ignore_errors=True)  # files that the new part lacks must go
        shutil.copytree(run / "assets" / part, assets / part)
    write(unet, text, run / "progress.jsonl", assets)
    return state


def take(trained: Path, assets: Path) -> dict[str, Any]:
    """Writes what `toybox.train_gpu` left in a folder; returns its last row of marks."""
    unet = UNet2DConditionModel.from_pretrained(trained / "unet")
    text = CLIPTextModel.from_pretrained(trained / "text_encoder")
    rows = trained / "progress.jsonl"
    write(unet, text, rows, assets)
    return json.loads(rows.read_text().splitlines()[-1])


def write(unet: UNet2DConditionModel, text: CLIPTextModel, progress: Path, assets: Path) -> None:
    """Writes the base's weights in fp16, and its rows of marks, if there are any."""
    base = assets / "base"
    unet.half().save_pretrained(base / "unet")
    text.half().save_pretrained(base / "text_encoder")
    DDIMScheduler(**SCHEDULER).save_pretrained(base / "scheduler")
    StableDiffusionPipeline.from_pretrained(base)  # what was written can be read
    if progress.exists():
        shutil.copy(progress, PROGRESS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=cache() / "run", metavar="FOLDER")
    parser.add_argument("--trained", type=Path, metavar="FOLDER", help="of toybox.train_gpu")
    assets = Path("assets/toybox")
    parser.add_argument("--assets", type=Path, default=assets, metavar="FOLDER")
    args = parser.parse_args()
    done = take(args.trained, args.assets) if args.trained else publish(args.run, args.assets)
    print(f"published: {done['samples']} samples, {done['seconds'] / 3600:.1f} hours")
