"""Teach Stable Diffusion 1.x a subject: a folder of photos -> concept.safetensors (Equilibrated Diffusion, Sec. 4).

python train_eqdiff.py --instance_data_dir photos/mug --class_word mug [--help]
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.config import TrainConfig, is_bundled, main_guard, parse, resolve, to_json
from eqdiff.curves import require_tracker, scalars, show_picture, start_trackers
from eqdiff.options import require_processes
from eqdiff.running import RESUME, Laps, Signals, locked, say_stopped

TOY_WARNING = (
    "note: this is the toybox base, which knows a small drawn world and cannot draw real photos; for yours, name "
    "a Stable Diffusion 1.x folder: --pretrained_model_name_or_path FOLDER, or EQDIFF_BASE=FOLDER"
)


class Run:
    """The loop and what it keeps: the log, previews, checkpoints and, at the end, the concept."""

    def __init__(self, config: TrainConfig, accelerator: Any, folder: Path, base: Any, lap: Laps) -> None:
        from eqdiff.guard import Guard
        from eqdiff.objective import Objective
        from eqdiff.setup import build_model, load_data, make_optimizer

        self.config, self.accelerator, self.folder, self.lap = config, accelerator, folder, lap
        self.latents, self.references, self.overlay, self.keys = load_data(config, base, accelerator, lap)
        self.model = build_model(config, base, accelerator)
        self.named = self.model.concept_parameters()
        objective, optimizer = Objective(self.model, config), make_optimizer(self.model, config)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.guard = Guard(accelerator, optimizer)
        if config.compile:
            self.model.unet.compile_repeated_blocks()
        self.model.vae.to("cpu")  # its work is done, but for the previews
        self.first, self.warned, self.started = 0, False, time.monotonic()

    def draw(self, step: int, part: int, process: int | None = None) -> Any:
        """A batch of a step: of this process, or of another one."""
        from eqdiff.checkpoint import step_generator
        from eqdiff.latents import draw_batch

        process = self.accelerator.process_index if process is None else process
        generator = step_generator(self.config.seed, step, process + self.accelerator.num_processes * part)
        batch = draw_batch(self.latents, self.config, len(self.model.alphas_cumprod), generator)
        return batch.to(self.accelerator.device)

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step: draw, Eq. 3-10, descend."""
        config, accelerator = self.config, self.accelerator
        total: dict[str, Any] = {}
        for part in range(config.gradient_accumulation_steps):
            with accelerator.autocast():
                losses = self.objective(self.draw(step, part))
            accelerator.backward(self.guard.scale(losses["loss"]) / config.gradient_accumulation_steps)
            total = {name: total.get(name, 0) + value.detach() for name, value in losses.items()}
        norm = accelerator.clip_grad_norm_(self.named.values(), config.max_grad_norm)
        self.guard.watch(step, total["loss"], norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: value / config.gradient_accumulation_steps for name, value in total.items()}

    def log(self, step: int, losses: dict[str, Any]) -> dict[str, float]:
        from eqdiff.guard import DEAD, all_dead

        parts = {name: round(float(value), 5) for name, value in losses.items()}
        row = {"step": step, **parts, "lr": self.config.learning_rate}
        row["seconds"] = round(time.monotonic() - self.started, 2)
        self.model.unet.eval()
        with self.accelerator.autocast():
            row |= self.accelerator.unwrap_model(self.objective).inspect(self.draw(step, 0))
        self.model.unet.train(self.config.gradient_checkpointing)
        if step > 1 and not self.warned and all_dead(row.get("gate", {})):
            self.warned = True
            logging.warning(DEAD, step)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.accelerator.log(scalars(row), step=step)
        return parts

    def due(self, step: int) -> dict[str, bool]:
        """What falls due after `step` steps."""
        config, last = self.config, step == self.config.max_train_steps
        return {
            "log": last or step == 1 or step % config.log_steps == 0,
            "checkpoint": config.checkpointing_steps > 0 and step % config.checkpointing_steps == 0,
            "preview": config.validation_steps > 0 and (last or step % config.validation_steps == 0),
            "concept": last,
        }

    def save(self, step: int) -> None:
        from eqdiff.checkpoint import save_checkpoint
        from eqdiff.setup import portable

        facts = {"config": portable(self.config), "processes": self.accelerator.num_processes, "data": self.keys}
        where, limit = self.folder / "checkpoints", self.config.checkpoints_total_limit
        save_checkpoint(where, self.concept(step), self.optimizer, self.named, facts, limit)

    def keep(self, step: int, due: dict[str, bool]) -> None:
        """A checkpoint and a preview where they are due. Main process only."""
        from eqdiff.setup import preview

        config = self.config
        self.lap("training")
        if due["checkpoint"]:
            self.save(step)
        if due["preview"]:
            grid = self.folder / "preview" / f"step-{step:06d}.png"
            with self.accelerator.autocast():  # frozen weights and the concept's may differ in precision
                preview(self.model, self.concept(step), config, grid)
            show_picture(self.accelerator, "preview", grid, step)
            self.lap("previews")

    def concept(self, step: int) -> Any:
        from eqdiff.concept import capture_concept
        from eqdiff.setup import portable

        return capture_concept(self.model, self.references, portable(self.config), step)

    def begin(self, start: tuple[Path, dict[str, Any]] | None) -> None:
        """Restores the checkpoint, and readies the output folder: what was there before goes only now."""
        from eqdiff.checkpoint import load_checkpoint
        from eqdiff.run_folder import prepare_folder, write_beside
        from eqdiff.setup import portable

        if start:
            path, state = start
            self.first = state["step"]
            load_checkpoint(path, self.model, self.optimizer, self.named)
            for name in (name for name, key in self.keys.items() if state["data"].get(name) != key):
                logging.warning("the %s are not those that %s was trained with", name.replace("_", " "), path)
        self.accelerator.wait_for_everyone()  # all have read what the main process now changes
        if self.accelerator.is_main_process:
            prepare_folder(self.config, self.first)
            write_beside(self.folder / "config.json", lambda path: path.write_text(to_json(self.config)))
            write_beside(self.folder / "masks.png", self.overlay.save)
        start_trackers(self.accelerator, self.config.report_to, self.folder, portable(self.config))

    def train(self, signals: Signals, start: tuple[Path, dict[str, Any]] | None = None) -> None:
        """All steps, or those after the checkpoint to `start` from, with its state. SystemExit: a signal came, and the
        step that it came in is saved."""
        from tqdm import tqdm

        config, main = self.config, self.accelerator.is_main_process
        self.begin(start)
        signals.defer(self.accelerator)
        self.model.unet.train(config.gradient_checkpointing)  # nothing else in it depends on the mode: no dropout
        bar = tqdm(total=config.max_train_steps, initial=self.first, desc="training", unit="step", disable=not main)
        for step in range(self.first + 1, config.max_train_steps + 1):
            losses, due = self.step(step), self.due(step)
            number = 0 if due["concept"] else signals.agreed()
            if self.guard.free or number or any(due.values()):
                self.guard.check(self.draw, config, self.references.names, self.folder / "checkpoints")
            if main and due["log"]:
                bar.set_postfix({name: f"{value:.4f}" for name, value in self.log(step, losses).items()})
            if number:
                bar.close()
                self.leave(step, signals, number)
            if main:
                self.keep(step, due)
            bar.update()
        bar.close()
        if main:
            self.finish()

    def leave(self, step: int, signals: Signals, number: int) -> None:
        if self.accelerator.is_main_process:
            self.save(step)
            say_stopped(number, f" after step {step}, which is saved: run the same with {RESUME} to go on")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        signals.stop(number)

    def finish(self) -> None:
        """The concept, and its card."""
        from eqdiff.card import write_card
        from eqdiff.concept import save_concept

        concept = self.concept(self.config.max_train_steps)
        save_concept(concept, self.folder / "concept.safetensors", dtype=self.config.concept_dtype)
        grids = sorted((self.folder / "preview").glob("*.png"))
        write_card(self.folder, concept, picture=f"preview/{grids[-1].name}" if grids else None)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    with Signals() as signals:
        config = resolve(parse(TrainConfig, argv))
        require_tracker(config.report_to)
        from accelerate import Accelerator

        from eqdiff.base import default_precision
        from eqdiff.guard import memory_guard

        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        lap = Laps()
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision or default_precision(),
            log_with=None if config.report_to == "none" else config.report_to,
            project_dir=config.output_dir,
        )
        require_processes(accelerator)
        alone = locked(Path(config.output_dir)) if accelerator.is_main_process else contextlib.nullcontext()
        with alone, memory_guard():
            customize(config, accelerator, lap, signals)


def customize(config: TrainConfig, accelerator: Any, lap: Laps, signals: Signals) -> None:
    """Trains in config.output_dir, and says how it goes."""
    from eqdiff.base import load_base
    from eqdiff.estimate import free_bytes, say_estimate, wanted
    from eqdiff.run_folder import start_point
    from eqdiff.setup import portable

    say, folder = accelerator.print, Path(config.output_dir)
    toy = is_bundled(config.pretrained_model_name_or_path) and not is_bundled(config.instance_data_dir)
    if toy:
        say(TOY_WARNING)
    start = start_point(config, portable(config), accelerator.num_processes)
    base = load_base(config.pretrained_model_name_or_path)
    lap("imports and base")
    run = Run(config, accelerator, folder, base, lap)
    count = sum(p.numel() for p in run.named.values())
    photos = len(run.references.names)
    say(f"{config.class_word}: {photos} photos, {count / 1e6:.2f} M parameters, preset {config.preset}")
    need, free = wanted(run.model, config, accelerator.mixed_precision).total, free_bytes(accelerator.device)
    for line in say_estimate(need, free, "GPU memory" if accelerator.device.type == "cuda" else "memory"):
        say(line)
    run.train(signals, start)
    accelerator.end_training()
    say(f"time: {lap}")
    say(
        f"done: {folder / 'concept.safetensors'}; look at {folder / 'preview'}, then run: bash scripts/test.sh {folder}"
    )
    if toy:
        say(TOY_WARNING)


if __name__ == "__main__":
    main(sys.argv[1:])
