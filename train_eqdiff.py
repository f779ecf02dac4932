"""Teach Stable Diffusion 1.x a subject: a folder of photos -> concept.safetensors (Equilibrated Diffusion, Sec. 4).

python train_eqdiff.py --instance_data_dir photos/mug --class_word mug [--help]
"""

import dataclasses
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.config import TrainConfig, UserError, is_bundled, main_guard, parse, resolve, to_json
from eqdiff.curves import FOLDER, require_tracker, scalars, show_picture, start_trackers
from eqdiff.options import require_processes

TOY_WARNING = (
    "note: this is the toybox base, which knows a small drawn world and cannot draw real photos; for yours, name "
    "a Stable Diffusion 1.x folder: --pretrained_model_name_or_path FOLDER, or EQDIFF_BASE=FOLDER"
)


def open_run(config: TrainConfig, accelerator: Any) -> Path:
    """The output folder, with the settings in it. UserError: it holds a finished concept, or cannot be written."""
    folder = Path(config.output_dir)
    if (folder / "concept.safetensors").exists() and not (config.overwrite or config.resume_from_checkpoint):
        raise UserError(
            f"{folder} holds a concept already; add --overwrite to replace it, or give another --output_dir"
        )
    require_processes(accelerator)
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(to_json(config))
            if not config.resume_from_checkpoint:
                (folder / "log.jsonl").unlink(missing_ok=True)
                shutil.rmtree(folder / FOLDER, ignore_errors=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --output_dir") from None
    return folder


def portable(config: TrainConfig) -> dict[str, Any]:
    """The settings without those that say where things lie on somebody's machine."""
    from eqdiff.setup import PATHS

    return {name: value for name, value in dataclasses.asdict(config).items() if name not in PATHS}


class Laps:
    """Where the time goes: seconds by part, each from the end of the one before."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.last = time.monotonic()

    def __call__(self, part: str) -> None:
        now = time.monotonic()
        self.parts[part], self.last = self.parts.get(part, 0.0) + now - self.last, now

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items())


class Run:
    """The loop and what it keeps: the log, previews, checkpoints and, at the end, the concept."""

    def __init__(self, config: TrainConfig, accelerator: Any, folder: Path, base: Any, lap: Laps) -> None:
        from eqdiff.objective import Objective
        from eqdiff.setup import build_model, load_data, make_optimizer

        self.config, self.accelerator, self.folder, self.lap = config, accelerator, folder, lap
        self.latents, self.references = load_data(config, base, accelerator, lap)
        self.model = build_model(config, base, accelerator)
        self.named = self.model.concept_parameters()
        objective, optimizer = Objective(self.model, config), make_optimizer(self.model, config)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        if config.compile:
            self.model.unet.compile_repeated_blocks()
        self.model.vae.to("cpu")  # its work is done, but for the previews
        self.first, self.started = 0, time.monotonic()

    def draw(self, step: int, part: int) -> Any:
        from eqdiff.checkpoint import step_generator
        from eqdiff.latents import draw_batch

        process = self.accelerator.process_index + self.accelerator.num_processes * part
        generator = step_generator(self.config.seed, step, process)
        batch = draw_batch(self.latents, self.config, len(self.model.alphas_cumprod), generator)
        return batch.to(self.accelerator.device)

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step: draw, Eq. 3-10, descend."""
        config, accelerator = self.config, self.accelerator
        total: dict[str, Any] = {}
        for part in range(config.gradient_accumulation_steps):
            with accelerator.autocast():
                losses = self.objective(self.draw(step, part))
            accelerator.backward(losses["loss"] / config.gradient_accumulation_steps)
            total = {name: total.get(name, 0) + value.detach() for name, value in losses.items()}
        accelerator.clip_grad_norm_(self.named.values(), config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: value / config.gradient_accumulation_steps for name, value in total.items()}

    def log(self, step: int, losses: dict[str, Any]) -> dict[str, float]:
        parts = {name: round(float(value), 5) for name, value in losses.items()}
        row = {"step": step, **parts, "lr": self.config.learning_rate}
        row["seconds"] = round(time.monotonic() - self.started, 2)
        self.model.unet.eval()
        with self.accelerator.autocast():
            row |= self.accelerator.unwrap_model(self.objective).inspect(self.draw(step, 0))
        self.model.unet.train(self.config.gradient_checkpointing)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.accelerator.log(scalars(row), step=step)
        return parts

    def keep(self, step: int) -> None:
        """Whatever falls due after `step` steps. Main process only."""
        from eqdiff.checkpoint import save_checkpoint
        from eqdiff.setup import preview

        config = self.config
        self.lap("training")
        if config.checkpointing_steps and step % config.checkpointing_steps == 0:
            save_checkpoint(self.folder / "checkpoints", self.concept(step), self.optimizer, self.named)
        last = step == config.max_train_steps
        if config.validation_steps and (last or step % config.validation_steps == 0):
            grid = self.folder / "preview" / f"step-{step:06d}.png"
            with self.accelerator.autocast():  # frozen weights and the concept's may differ in precision
                preview(self.model, self.concept(step), config, grid)
            show_picture(self.accelerator, "preview", grid, step)
            self.lap("previews")

    def concept(self, step: int) -> Any:
        from eqdiff.concept import capture_concept

        return capture_concept(self.model, self.references, portable(self.config), step)

    def train(self) -> None:
        from tqdm import tqdm

        from eqdiff.card import write_card
        from eqdiff.checkpoint import find_checkpoint, load_checkpoint
        from eqdiff.concept import save_concept

        config, main = self.config, self.accelerator.is_main_process
        if config.resume_from_checkpoint:
            checkpoint = find_checkpoint(config.resume_from_checkpoint, self.folder / "checkpoints")
            self.first = load_checkpoint(checkpoint, self.model, self.optimizer, self.named)
        self.model.unet.train(config.gradient_checkpointing)  # nothing else in it depends on the mode: no dropout
        bar = tqdm(total=config.max_train_steps, initial=self.first, desc="training", unit="step", disable=not main)
        for step in range(self.first + 1, config.max_train_steps + 1):
            losses = self.step(step)
            if main and (step % config.log_steps == 0 or step in (1, config.max_train_steps)):
                bar.set_postfix({name: f"{value:.4f}" for name, value in self.log(step, losses).items()})
            if main:
                self.keep(step)
            bar.update()
        bar.close()
        if main:
            concept = self.concept(config.max_train_steps)
            save_concept(concept, self.folder / "concept.safetensors", dtype=config.concept_dtype)
            grids = sorted((self.folder / "preview").glob("*.png"))
            write_card(self.folder, concept, picture=f"preview/{grids[-1].name}" if grids else None)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = resolve(parse(TrainConfig, argv))
    require_tracker(config.report_to)
    toy = is_bundled(config.pretrained_model_name_or_path) and not is_bundled(config.instance_data_dir)
    lap = Laps()
    from accelerate import Accelerator

    from eqdiff.base import default_precision, load_base
    from eqdiff.estimate import free_bytes, say_estimate, wanted

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision or default_precision(),
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=config.output_dir,
    )
    say = accelerator.print
    if toy:
        say(TOY_WARNING)
    folder = open_run(config, accelerator)
    base = load_base(config.pretrained_model_name_or_path)
    lap("imports and base")
    start_trackers(accelerator, config.report_to, folder, portable(config))
    run = Run(config, accelerator, folder, base, lap)
    count = sum(p.numel() for p in run.named.values())
    photos = len(run.references.names)
    say(f"{config.class_word}: {photos} photos, {count / 1e6:.2f} M parameters, preset {config.preset}")
    need, free = wanted(run.model, config, accelerator.mixed_precision).total, free_bytes(accelerator.device)
    for line in say_estimate(need, free, "GPU memory" if accelerator.device.type == "cuda" else "memory"):
        say(line)
    run.train()
    accelerator.end_training()
    say(f"time: {lap}")
    say(
        f"done: {folder / 'concept.safetensors'}; look at {folder / 'preview'}, then run: bash scripts/test.sh {folder}"
    )
    if toy:
        say(TOY_WARNING)


if __name__ == "__main__":
    main(sys.argv[1:])
