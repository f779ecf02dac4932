"""Trains the base on one GPU in minutes, by the recipe of `toybox.train_base`.

    python -m toybox.latents --data D/latents --count 200000 --wordings 8 --workers 14 &
    python -m toybox.train_gpu --data D/latents --output D/base --minutes 8

A step of so small a network is mostly the start of its kernels. So a whole step, the optimizer's
with it, is one CUDA graph; latents and captions lie on the GPU; and matrices of one shape are
orthogonalized together. Shards that are still being made are taken as they come. The rate falls
over the last third. It ends with the averaged weights and the marks on the way under --output;
`python -m toybox.publish --trained D/base` takes them from there.
"""

import argparse
import json
import threading
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from toybox.base_model import BaseLoss, Recipe, text_model, unet_model
from toybox.dataset import LATENT_SIDE
from toybox.judges import Judges, tokenize
from toybox.latents import DROP, Batch, joined
from toybox.loop import MATRIX_RATE
from toybox.muon import CapturedMuon
from toybox.run import SEED, measured
from toybox.schedule import linear_fall, warm_up

WARMUP = 500  # steps
FALL = 0.35  # of the time, the last: the rate falls to nothing
AVERAGE_EVERY = 10  # steps
LOOK_EVERY = 200  # steps between two looks for new shards
FIRST_SCENES = 4000  # that training begins with
PART_SIZE = "12MB"  # of a file of weights


class Scenes:
    """Latents, masks and captions' tokens on the device, and draws of them.

    The arrays have room for `most` scenes. Their number is a tensor, so that a captured graph
    draws from what has come since.
    """

    def __init__(self, folder: Path, tokenizer: CLIPTokenizer, most: int, device: str) -> None:
        self.folder = folder
        self.taken: set[Path] = set()
        self.filled = 0
        self.most = most
        self.device = device
        self.count = torch.zeros((), device=device)
        self.empty = tokenize(tokenizer, [""]).to(device)
        self.latents = self.masks = self.ids = torch.empty(0)

    def look(self) -> int:
        """Takes the shards that are new; returns how many scenes there are now."""
        files = [file for file in sorted(self.folder.glob("?????.npz")) if file not in self.taken]
        if not files or self.filled >= self.most:
            return self.filled

        found = joined(files)
        arrays = [torch.from_numpy(part) for part in (found.latents, found.masks, found.ids)]
        if not self.filled:
            self.latents, self.masks, self.ids = (
                torch.zeros((self.most, *part.shape[1:]), dtype=part.dtype, device=self.device)
                for part in arrays
            )
        room = min(len(found), self.most - self.filled)
        into = slice(self.filled, self.filled + room)
        for store, part in zip((self.latents, self.masks, self.ids), arrays, strict=True):
            store[into] = part[:room].to(self.device)

        self.taken.update(files)
        self.filled += room
        self.count.fill_(self.filled)
        return self.filled

    def draw(self, size: int) -> Batch:
        """A training batch; every draw is the device's."""
        rows = (torch.rand(size, device=self.device) * self.count).long()
        which = torch.randint(self.ids.shape[1], (size,), device=self.device)
        dropped = torch.rand(size, 1, device=self.device) < DROP
        ids = torch.where(dropped, self.empty, self.ids[rows, which].long())
        masks = self.masks[rows].float().div(255).view(size, 1, LATENT_SIDE, LATENT_SIDE)
        return Batch(self.latents[rows].float(), ids, masks)


class Training:
    """The module, its average, and one step of it, captured where there is a GPU."""

    def __init__(self, module: BaseLoss, scenes: Scenes, recipe: Recipe) -> None:
        self.module = module
        self.average = deepcopy(module).eval().requires_grad_(False)
        self.scenes = scenes
        self.recipe = recipe
        self.optimizer = CapturedMuon(module, weight_decay=1e-2)
        self.parameters = list(module.parameters())
        self.loss = torch.zeros((), device=scenes.device)
        self.steps = 0
        self.act = self._step

    def _step(self) -> None:
        for p in self.parameters:
            p.grad = None
        kind = self.scenes.device
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda", cache_enabled=False):
            losses = self.module(self.scenes.draw(self.recipe.batch))
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.loss.copy_(losses["mse"].detach())

    def capture(self) -> None:
        """Makes one step a graph. The rate is zero: the steps before it move nothing."""
        self.optimizer.set_rates(0.0, 0.0)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.act = graph.replay

    def advance(self, share: float) -> None:
        """One step, at this share of the time."""
        rate = self.recipe.learning_rate * warm_up(self.steps, WARMUP) * linear_fall(share, FALL)
        self.optimizer.set_rates(MATRIX_RATE * rate, rate)
        self.act()
        self.steps += 1
        if self.steps % AVERAGE_EVERY == 0:
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the average; its decay rises to the recipe's."""
        decay = min(self.recipe.ema_decay, 1 - (1 + self.steps) ** -0.75)
        shadows = list(self.average.parameters())
        torch._foreach_lerp_(shadows, self.parameters, 1 - decay**AVERAGE_EVERY)

    @property
    def samples(self) -> int:
        return self.steps * self.recipe.batch


class Marker:
    """Marks copies of the average beside the training, in a thread, a row a copy."""

    def __init__(self, base: Path, assets: Path, output: Path, device: str) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32)
        self.vae = vae.eval().to(device)
        self.judges = Judges.load(assets)
        self.output = output
        self.threads: list[threading.Thread] = []

    def mark(self, training: Training, seconds: float) -> None:
        facts = {"step": training.steps, "samples": training.samples, "seconds": round(seconds)}
        facts["scenes"] = training.scenes.filled
        job = (deepcopy(training.average), facts)
        self.threads.append(threading.Thread(target=self._measure, args=job))
        self.threads[-1].start()

    @torch.no_grad()
    def _measure(self, module: BaseLoss, facts: dict[str, Any]) -> None:
        sheet = self.output / f"{facts['samples']:09}.png"
        row = facts | measured(module, self.tokenizer, self.vae, self.judges, sheet)
        with (self.output / "progress.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def wait(self) -> None:
        for thread in self.threads:
            thread.join()


def train(training: Training, marker: Marker, minutes: float, times: int) -> None:
    """Trains for so long; marks `times` times at even distances, and at the end."""
    seconds = 60 * minutes
    started = told = time.monotonic()
    due = [(number + 1) / (times + 1) for number in range(times)]

    while (spent := time.monotonic() - started) < seconds:
        share = spent / seconds
        training.advance(share)
        if training.steps % AVERAGE_EVERY == 0:
            float(training.loss)  # waits: else the clock would run ahead of the device
        if training.steps % LOOK_EVERY == 0:
            training.scenes.look()
        if due and share > due[0]:
            due.pop(0)
            marker.mark(training, spent)
        if time.monotonic() - told > 15:
            told = time.monotonic()
            facts = f"{training.samples} samples of {training.scenes.filled} scenes"
            print(f"{spent:.0f} s: {facts}, mse {float(training.loss):.4f}", flush=True)

    marker.mark(training, seconds)
    marker.wait()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="shards")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--assets", type=Path, default=Path("assets/toybox"), metavar="DIR")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning_rate", type=float, default=Recipe().learning_rate)
    parser.add_argument("--ema_decay", type=float, default=0.9995)
    parser.add_argument("--most", type=int, default=300_000, help="scenes at most")
    parser.add_argument("--marks", type=int, default=3, help="on the way")
    parser.add_argument("--eager", action="store_true", help="no graph")
    return parser


def main() -> None:
    args = arguments().parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(SEED)

    base = args.assets / "base"
    marker = Marker(base, args.assets, args.output, device)
    recipe = Recipe(batch=args.batch, learning_rate=args.learning_rate, ema_decay=args.ema_decay)
    module = BaseLoss(unet_model(recipe.widths), text_model(marker.tokenizer), recipe)
    scenes = Scenes(args.data, marker.tokenizer, args.most, device)
    while scenes.look() < min(FIRST_SCENES, args.most):
        time.sleep(1)

    training = Training(module.to(device), scenes, recipe)
    if device == "cuda" and not args.eager:
        training.capture()
    train(training, marker, args.minutes, args.marks)

    found = training.average.half()
    found.unet.save_pretrained(args.output / "unet", max_shard_size=PART_SIZE)
    found.text_encoder.save_pretrained(args.output / "text_encoder")
    print(f"done: {training.samples} samples of {scenes.filled} scenes", flush=True)


if __name__ == "__main__":
    main()
