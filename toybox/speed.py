"""Trials of speed: forward and backward passes of the base on one thread.

    python -m toybox.speed [--batch 32]

Each way adds a row with its samples a second to toybox/trials.jsonl, the median of several rounds
in turn. The ways are fp32, channels-last, bf16 (autocast), torch.compile, and oneDNN's own bf16
inside of fp32 products.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import CLIPTokenizer

from toybox.base_model import BaseLoss, Recipe, text_model, unet_model
from toybox.latents import Batch
from toybox.trials import LOG

WAYS = (
    "fp32",
    "channels_last",
    "bf16",
    "bf16 channels_last",
    "compile",
    "compile channels_last",
    "fp32 by bf16",
)


def step_of(way: str, tokenizer: CLIPTokenizer, size: int) -> Callable[[], None]:
    """A training pass, forward and backward, in one of WAYS."""
    recipe = Recipe()
    module = BaseLoss(unet_model(recipe.widths), text_model(tokenizer), recipe)
    latents = torch.randn(size, 4, 16, 16)
    if "channels_last" in way:
        module = module.to(memory_format=torch.channels_last)
        latents = latents.to(memory_format=torch.channels_last)

    ids = torch.randint(3, 1000, (size, tokenizer.model_max_length))
    batch = Batch(latents, ids, torch.rand(size, 1, 16, 16))
    called = torch.compile(module) if "compile" in way else module
    inside = "bf16" if way == "fp32 by bf16" else "ieee"

    def step() -> None:
        torch.backends.mkldnn.conv.fp32_precision = inside
        torch.backends.mkldnn.matmul.fp32_precision = inside
        with torch.autocast("cpu", torch.bfloat16, enabled=way.startswith("bf16")):
            loss = called(batch)["loss"]
        loss.backward()
        module.zero_grad(set_to_none=True)

    return step


def seconds_of(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each way's steps, taken in turn; a first round warms up and compiles."""
    seconds: dict[str, list[float]] = {way: [] for way in steps}

    for turn in range(rounds + 1):
        for way, step in steps.items():
            started = time.process_time()
            step()
            if turn:
                seconds[way].append(time.process_time() - started)

    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--log", type=Path, default=LOG, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)

    tokenizer = CLIPTokenizer.from_pretrained("assets/toybox/base/tokenizer")
    steps = {way: step_of(way, tokenizer, args.batch) for way in WAYS}

    for way, seconds in seconds_of(steps, args.rounds).items():
        speed = round(args.batch / median(seconds), 1)
        row = json.dumps({"trial": f"speed: {way}", "batch": args.batch, "samples_a_second": speed})
        print(row, flush=True)
        with args.log.open("a") as file:
            file.write(row + "\n")


if __name__ == "__main__":
    main()
