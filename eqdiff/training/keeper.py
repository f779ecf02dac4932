"""What a training leaves behind, and when: log, curves, previews, checkpoints, and the concept."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from eqdiff.concept.card import write_card
from eqdiff.concept.file import safe_dtype, save_concept
from eqdiff.errors import require
from eqdiff.files import replacing
from eqdiff.finite import NotFinite, without_nan
from eqdiff.ours import save_picture
from eqdiff.settings.options import to_json
from eqdiff.settings.train import TrainConfig, portable, told
from eqdiff.training.checkpoint import State, load_checkpoint, save_checkpoint
from eqdiff.training.folder import CHECKPOINTS, prepare_folder
from eqdiff.training.guard import DEAD, all_dead
from eqdiff.training.likeness import Likeness
from eqdiff.training.memory import estimate_lines, estimate_memory, free_bytes
from eqdiff.training.preview import preview, show_picture
from eqdiff.training.signals import Signals, print_stopped
from eqdiff.training.stop import RESUME, Laps
from eqdiff.training.trackers import scalars, start_trackers
from eqdiff.training.trainer import Trainer

LOG = logging.getLogger(__name__)
Start = tuple[Path, State] | None  # the checkpoint to resume from and its state


class Outputs(NamedTuple):
    """What is written after a step. last: it is the last step."""

    log: bool
    checkpoint: bool
    preview: bool
    last: bool


def outputs_after(step: int, config: TrainConfig) -> Outputs:
    """What is written after step number `step`, counted from 1."""
    last = step == config.max_train_steps
    every = config.checkpointing_steps
    preview_every = config.validation_steps

    return Outputs(
        log=last or step == 1 or step % config.log_steps == 0,
        checkpoint=every > 0 and step % every == 0,
        preview=preview_every > 0 and (last or step % preview_every == 0),
        last=last,
    )


class Keeper:
    """Counts a training's steps, and writes its results into config.output_dir."""

    def __init__(self, trainer: Trainer, signals: Signals, lap: Laps) -> None:
        self.trainer = trainer
        self.config = trainer.config
        self.accelerator = trainer.accelerator
        self.folder = Path(trainer.config.output_dir)
        self.signals = signals
        self.lap = lap
        self.first = 0  # steps done before this run
        self.warned = False  # of a dead gate
        self.started = time.monotonic()
        self.bar: tqdm | None = None
        self.likeness: Likeness | None = None  # of previews, where any are drawn
        if self.is_main and self.config.validation_steps:
            self.likeness = Likeness(self.config)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.accelerator.is_main_process

    def announcement(self) -> list[str]:
        """Lines on what is trained, and on the memory that it needs."""
        trainer = self.trainer
        learned = sum(p.numel() for p in trainer.trained.values())
        photos = len(trainer.data.references.names)
        subject = f"{self.config.class_word}: {photos} photos"

        device = self.accelerator.device
        precision = self.accelerator.mixed_precision
        need = estimate_memory(trainer.model, self.config, precision).total
        where = "GPU memory" if device.type == "cuda" else "memory"
        return [
            f"{subject}, {learned / 1e6:.2f} M parameters, method {self.config.method}, "
            f"preset {self.config.preset}",
            *estimate_lines(need, free_bytes(device), where),
        ]

    def start_run(self, start: Start) -> None:
        """Restores the checkpoint and makes the output folder ready.

        A previous training's results are removed only now.
        """
        if start:
            self._restore(*start)
        self.accelerator.wait_for_everyone()  # all have read what the main process now changes

        if self.is_main:
            prepare_folder(self.config, self.first)
            with replacing(self.folder / "config.json") as beside:
                text = to_json(told(self.config, self.folder))
                beside.write_text(text, encoding="utf-8")
            with replacing(self.folder / "masks.png") as beside:
                save_picture(self.trainer.data.overlay, beside)

        settings = portable(self.config)
        start_trackers(self.accelerator, self.config.report_to, self.folder, settings)

    def _restore(self, path: Path, state: State) -> None:
        trainer = self.trainer
        self.first = state["step"]
        load_checkpoint(path, self.first, trainer.model, trainer.optimizer, trainer.trained)

        for name, key in trainer.data.keys.items():
            if state["data"].get(name) != key:
                kind = name.replace("_", " ")
                LOG.warning("the %s are not those that %s was trained with", kind, path)

    def steps(self) -> Iterator[int]:
        """The numbers of the steps to do. From here on a signal waits for the end of its step."""
        self.signals.defer(self.accelerator)
        self.trainer.set_mode()
        self.bar = tqdm(
            total=self.config.max_train_steps,
            initial=self.first,
            desc="training",
            unit="step",
            disable=not self.is_main,
        )

        with self.bar:
            yield from range(self.first + 1, self.config.max_train_steps + 1)

    def after(self, step: int, losses: dict[str, Tensor]) -> None:
        """Logs and writes what is due after a step.

        Raises UserError if some step's numbers were not finite, and SystemExit if a signal came;
        the step is then saved first.
        """
        outputs = outputs_after(step, self.config)
        number = 0 if outputs.last else self.signals.agreed()
        if self.trainer.guard.free or number or any(outputs):
            self._check()

        if self.is_main and (number or any(outputs)):
            self._require_folder()
        if self.is_main and outputs.log:
            figures = self.log(step, losses)
            self.bar.set_postfix({name: f"{value:.4f}" for name, value in figures.items()})
        if number:
            self._stop(step, number)
        if self.is_main:
            self._write(step, outputs)
        self.bar.update()

    def _require_folder(self) -> None:
        """Raises UserError if somebody removed or moved the output folder, and the lock with it."""
        require(
            self.folder.is_dir(),
            f"{self.folder}: removed or moved while the training ran, nothing can be saved there; "
            "start again",
        )

    def _check(self) -> None:
        names = self.trainer.data.references.names
        parts = self.config.gradient_accumulation_steps
        self.trainer.guard.check(self.trainer.draw, parts, names, self.folder / CHECKPOINTS)

    def log(self, step: int, losses: dict[str, Tensor]) -> dict[str, float]:
        """Writes a line of log.jsonl and its curves. Returns the losses as running means."""
        means = self.trainer.running.read()
        figures = {name: round(float(value), 5) for name, value in losses.items()}
        seconds = round(time.monotonic() - self.started, 2)
        row = {"step": step, **figures, "lr": self.config.learning_rate, "seconds": seconds}
        row |= self.trainer.inspect(step) | means

        if step > 1 and not self.warned and all_dead(row.get("gate", {})):
            self.warned = True
            LOG.warning(DEAD, step)

        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(row)) + "\n")
        self.accelerator.log(scalars(row), step=step)
        return means["mean"]

    def _write(self, step: int, outputs: Outputs) -> None:
        """Writes a checkpoint and a preview where they are due. Main process only."""
        self.lap("training")
        if outputs.checkpoint:
            self._save(step)

        if outputs.preview:
            self._preview(step)
            self.lap("previews")

    def _preview(self, step: int) -> None:
        """Writes a preview grid, or says why there is none: that does not end a training."""
        grid = self.folder / "preview" / f"step-{step:06d}.png"
        try:
            with self.accelerator.autocast():  # frozen and learned weights may differ in precision
                marks = preview(
                    self.trainer.model, self.trainer.concept(step), self.config, grid, self.likeness
                )
        except NotFinite as error:
            LOG.warning("step %d: no preview, %s", step, error)
            return

        self.bar.write(f"step {step}: {marks.sentence}")
        self.accelerator.log({"preview/likeness": marks.mean}, step=step)
        show_picture(self.accelerator, "preview", grid, step)

    def _save(self, step: int) -> None:
        """Writes a checkpoint."""
        trainer = self.trainer
        facts = {
            "config": portable(self.config),
            "processes": self.accelerator.num_processes,
            "data": trainer.data.keys,
        }

        save_checkpoint(
            self.folder / CHECKPOINTS,
            trainer.concept(step),
            trainer.optimizer,
            trainer.trained,
            facts,
            limit=self.config.checkpoints_total_limit,
        )

    def _stop(self, step: int, number: int) -> None:
        """Saves the step and leaves with the status of the signal `number`."""
        self.bar.close()
        if self.is_main:
            self._save(step)
            advice = f"run the same with {RESUME} to go on"
            print_stopped(number, f" after step {step}, which is saved: {advice}")

        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        self.signals.stop(number)

    def finish(self) -> None:
        """Writes the concept and its card."""
        if self.is_main:
            concept = self.trainer.concept(self.config.max_train_steps)
            dtype = safe_dtype(concept, self.config.concept_dtype)
            save_concept(concept, self.folder / "concept.safetensors", dtype=dtype)

            grids = sorted((self.folder / "preview").glob("*.png"))
            picture = f"preview/{grids[-1].name}" if grids else None
            write_card(self.folder, concept, picture=picture)
        self.accelerator.end_training()
