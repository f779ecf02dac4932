"""Trains the instruments on drawn pictures: `python -m toybox.train_judges {clip,dino}`.

`clip` names class, context and style; `dino` tells instances apart.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from toybox.clip import SHAPES_FIRST, ClipLoss, clip_accuracy, clip_batches, clip_model
from toybox.dataset import Dataset, load
from toybox.dino import DinoLoss, dino_batches, dino_retrieval, vit_model
from toybox.judges import ATTRIBUTE_PROMPTS, tokenize
from toybox.loop import add_arguments, budget, fit, progress_of


def save(model: CLIPModel | ViTModel, folder: Path, figures: dict[str, float]) -> dict[str, float]:
    """Writes fp16 weights; returns the figures."""
    model.half().save_pretrained(folder)
    model.float()
    return figures


def train_dino(args: argparse.Namespace, data: Dataset, folder: Path, log: Path) -> None:
    vit = vit_model()
    if args.resume:
        vit = ViTModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)

    stream = dino_batches(data, args.batch, args.seed)

    def save_all(module: DinoLoss) -> dict[str, float]:
        return save(module.vit, folder, dino_retrieval(module.vit))

    fit(DinoLoss(vit), stream, budget(args), save_all, log)


def train_clip(args: argparse.Namespace, data: Dataset, folder: Path, log: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(args.assets / "base" / "tokenizer")
    tokenizer.save_pretrained(folder)
    prompts = {name: tokenize(tokenizer, texts) for name, texts in ATTRIBUTE_PROMPTS.items()}
    clip = clip_model(tokenizer.eos_token_id)
    if args.resume:
        clip = CLIPModel.from_pretrained(folder, dtype=torch.float32)

    plan = budget(args)
    started = time.monotonic()

    def shapes_only() -> bool:
        return not args.resume and progress_of(0, started, plan) < SHAPES_FIRST

    stream = clip_batches(data, tokenizer, args.batch, args.seed, shapes_only)

    def save_all(module: ClipLoss) -> dict[str, float]:
        return save(module.clip, folder, clip_accuracy(module.clip, prompts))

    fit(ClipLoss(clip, prompts), stream, plan, save_all, log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("clip", "dino"))
    add_arguments(parser, steps=20000, minutes=12, rate=5e-4, batch=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train = train_dino if args.which == "dino" else train_clip
    log = args.data.parent / f"{args.which}.jsonl"
    train(args, load(args.data), args.assets / args.which, log)


if __name__ == "__main__":
    main()
