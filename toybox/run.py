"""One process of the base's training: what it trains, where it stands, what it keeps.

`toybox.train_base` drives it.
"""

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from toybox.base_model import BaseLoss, Recipe, band_losses, pipeline_of, text_model, unet_model
from toybox.judges import Judges
from toybox.latents import batch_at, load, validation
from toybox.loop import average_of, descend, with_average
from toybox.marks import colour_test, marks
from toybox.muon import Muon, shares_of
from toybox.schedule import constant_then_fall, warm_up
from toybox.sheets import save_sheet

SEED = 13
WARMUP = 200  # steps
MARK_CAPTIONS = 96
MARK_PAIRS = 0
HELD_OUT = 128  # scenes that the loss is measured on


class Cores:
    """Keeps the process on the cores that the file `cores` allows.

    With enough cores each rank has its own, with one all ranks share it.
    """

    def __init__(self, file: Path, rank: int) -> None:
        self.file = file
        self.rank = rank
        self.all = sorted(os.sched_getaffinity(0))
        self.allowed = 0

    def obey(self) -> None:
        """Moves this process to its core, and waits while the file says 0."""
        while (allowed := self._read()) == 0:
            time.sleep(1)

        if allowed != self.allowed:
            self.allowed = allowed
            from_the_end = self.rank % min(allowed, len(self.all))
            core = {self.all[len(self.all) - 1 - from_the_end]}
            for task in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(task), core)

    def _read(self) -> int:
        try:
            return int(self.file.read_text())
        except (OSError, ValueError):
            return len(self.all)


def newest_of(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's folder: a kill may have left the former one alone."""
    folders = [folder / name for name in ("checkpoint", "checkpoint.former")]
    return next((path for path in folders if (path / "state.json").exists()), None)


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Where the run stood at a checkpoint, and its recipe."""
    return json.loads((checkpoint / "state.json").read_text())


def recipe_of(state: dict[str, Any]) -> Recipe:
    """The recipe in a checkpoint's state."""
    found = state["recipe"]
    return Recipe(**found | {"widths": tuple(found["widths"])})


class Run:
    """One process of the run: what it trains, and where it stands."""

    def __init__(self, folder: Path, data: Path, recipe: Recipe | None = None) -> None:
        """recipe: None for the newest checkpoint's, else the first that bases are trained with."""
        self.folder = folder
        newest = newest_of(folder)
        self.recipe = recipe or (recipe_of(state_of(newest)) if newest else Recipe())
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.rank = self.accelerator.process_index
        self.world = self.accelerator.num_processes

        base = folder / "assets" / "base"
        self.tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        self.vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32).eval()
        self.data = load(data)

        torch.manual_seed(SEED)
        self.module = self._module(base)
        self.optimizer = Muon(self.module, lr=self.recipe.learning_rate, weight_decay=1e-2)
        self.average = average_of(self.module, self.recipe.ema_decay)

        self.step = 0
        self.samples = 0
        self.fall_from: int | None = None  # samples
        self.seconds = 0.0  # spent training, over all starts
        self.warm_from = 0  # step at which the optimizer knew nothing
        self._load(newest)
        self.wrapped = self.accelerator.prepare(self.module)

    def _module(self, base: Path) -> BaseLoss:
        """The loss with the UNet and text encoder under `base`, or with new ones."""
        if (base / "unet").exists():
            unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)
            text = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
        else:
            unet = unet_model(self.recipe.widths)
            text = text_model(self.tokenizer)

        module = BaseLoss(unet, text, self.recipe).to(memory_format=torch.channels_last)
        return module.to(self.accelerator.device)

    def advance(self) -> dict[str, Tensor]:
        """One step. Each process draws its share of the batch from the step's number alone."""
        share = self.recipe.batch // self.world
        batch = batch_at(self.data, self.tokenizer, share, (SEED, self.step, self.rank))
        generator = torch.Generator().manual_seed((SEED * 10**7 + self.step) * 64 + self.rank)

        losses = self.wrapped(batch.to(self.accelerator.device), generator)
        self.accelerator.backward(losses["loss"])

        rate = constant_then_fall(self.samples, self.fall_from)
        rate *= warm_up(self.step - self.warm_from, WARMUP)
        descend(self.module, self.optimizer, self.average, self.recipe.learning_rate * rate)

        self.step += 1
        self.samples += share * self.world
        return losses

    def state(self) -> dict[str, object]:
        """Where the run stands, as a checkpoint's state.json and the rows of marks have it."""
        return {
            "step": self.step,
            "samples": self.samples,
            "fall_from": self.fall_from,
            "seconds": round(self.seconds),
            "updates": self.average.optimization_step,
            "warm_from": self.warm_from,
        }

    def save(self) -> None:
        """Writes a checkpoint in place of the one before.

        A kill at any moment leaves one of the two whole.
        """
        partial = self.folder / "checkpoint.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        self.accelerator.wait_for_everyone()

        save_file(self._optimizer_tensors(), partial / f"optimizer-{self.rank}.safetensors")
        if self.accelerator.is_main_process:
            self._save_weights(partial)
        self.accelerator.wait_for_everyone()

        if self.accelerator.is_main_process:
            current = self.folder / "checkpoint"
            former = self.folder / "checkpoint.former"
            shutil.rmtree(former, ignore_errors=True)
            if current.exists():
                current.rename(former)
            partial.rename(current)
        self.accelerator.wait_for_everyone()

    def _save_weights(self, folder: Path) -> None:
        """Writes what all processes have alike: weights, their average, and the run's state."""
        weights = {name: p.detach().contiguous() for name, p in self.module.named_parameters()}
        shadows = (shadow.contiguous() for shadow in self.average.shadow_params)
        averaged = dict(zip(weights, shadows, strict=True))

        save_file(weights, folder / "weights.safetensors")
        save_file(averaged, folder / "average.safetensors")
        state = {**self.state(), "recipe": asdict(self.recipe)}
        (folder / "state.json").write_text(json.dumps(state))

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as "parameter:kind"; of matrices those that this process owns."""
        elsewhere = self.optimizer.elsewhere()
        tensors = {}
        for name, p in self.module.named_parameters():
            if p not in elsewhere:
                for kind, value in self.optimizer.state.get(p, {}).items():
                    tensors[f"{name}:{kind}"] = torch.as_tensor(value).contiguous()
        return tensors

    def _load(self, newest: Path | None) -> None:
        """Goes on from the newest whole checkpoint, if there is one."""
        if newest is None:
            self._count_on()
            return

        state = state_of(newest)
        self.step = state["step"]
        self.samples = state["samples"]
        self.fall_from = state["fall_from"]
        self.seconds = state["seconds"]
        self.warm_from = state.get("warm_from", 0)
        self.average.optimization_step = state["updates"]

        self._load_weights(newest)
        self._load_optimizer(newest)

    def _count_on(self) -> None:
        """Counts from where the committed weights stood, if their marks lie here.

        Optimizer and average are not committed: both begin anew.
        """
        rows = self.folder / "progress.jsonl"
        if rows.exists():
            last = json.loads(rows.read_text().splitlines()[-1])
            self.step = self.warm_from = last["step"]
            self.samples = last["samples"]
            self.seconds = last["seconds"]

    @torch.no_grad()
    def _load_weights(self, folder: Path) -> None:
        weights = load_file(folder / "weights.safetensors")
        averaged = load_file(folder / "average.safetensors")
        parameters = self.module.named_parameters()

        for (name, p), shadow in zip(parameters, self.average.shadow_params, strict=True):
            p.copy_(weights[name])
            shadow.copy_(averaged[name])

    def _load_optimizer(self, folder: Path) -> None:
        """Takes each matrix's state from the process that owned it.

        Earlier versions also wrote what the other processes had loaded once, which was old.
        """
        paths = sorted(folder.glob("optimizer-*.safetensors"))
        matrices = self.optimizer.param_groups[0]["params"]
        owners = dict(zip(matrices, shares_of(matrices, len(paths)), strict=True))
        parameters = dict(self.module.named_parameters())

        for rank, path in enumerate(paths):
            for key, value in load_file(path).items():
                name, _, kind = key.rpartition(":")
                p = parameters[name]
                if owners.get(p, rank) == rank:
                    self.optimizer.state[p][kind] = value

    def mark(self) -> None:
        """The first process adds a row of marks and a sheet, by the averaged weights."""
        if self.accelerator.is_main_process:
            self.module.eval()
            with torch.no_grad():
                figures = with_average(self.module, self.average, self._measure)

            with (self.folder / "progress.jsonl").open("a") as file:
                file.write(json.dumps({**self.state(), **figures}) + "\n")
        self.accelerator.wait_for_everyone()

    def _measure(self, module: BaseLoss) -> dict[str, Any]:
        sheet = self.folder / "sheets" / f"{self.samples:08}.png"
        judges = Judges.load(self.folder / "assets")
        return measured(module, self.tokenizer, self.vae, judges, sheet)


def measured(
    module: BaseLoss, tokenizer: CLIPTokenizer, vae: AutoencoderKL, judges: Judges, sheet: Path
) -> dict[str, Any]:
    """Marks, colours followed and losses in bands; writes a sheet of pictures."""
    pipe = pipeline_of(module, tokenizer, vae)
    figures, images = marks(pipe, judges, MARK_CAPTIONS, pairs=MARK_PAIRS)
    save_sheet(sheet, images[:80], columns=10)

    colours = colour_test(pipe)
    scenes = validation(vae, tokenizer, HELD_OUT)
    return {**colours.figures, **band_losses(module, scenes), **figures}
