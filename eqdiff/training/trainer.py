"""The parts of a training, and the acts of a step. The loop itself is in train_eqdiff.py."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from eqdiff.base.compiled import compile_blocks
from eqdiff.base.load import Base, load_base
from eqdiff.base.schedule import require_steps
from eqdiff.batch import Batch, draw_batch
from eqdiff.concept.concept import Concept, capture_concept
from eqdiff.method import Method
from eqdiff.methods.registry import METHODS
from eqdiff.settings.train import TrainConfig, portable
from eqdiff.training.build import build_model, leave_cudnn_attention, load_data, make_optimizer
from eqdiff.training.checkpoint import step_generator
from eqdiff.training.guard import Guard
from eqdiff.training.running import RunningMeans

Losses = dict[str, Tensor]
Statistics = dict[str, dict[str, tuple[float, float, float]] | float]
Lap = Callable[[str], None]


def build_trainer(config: TrainConfig, accelerator: Accelerator, lap: Lap) -> "Trainer":
    """A training on the base that the settings name.

    lap: is told the name of each part of the work when it is done.

    Raises UserError if the base, the photos or the class images cannot be used.
    """
    base = load_base(config.pretrained_model_name_or_path)
    if config.validation_steps:  # the previews are drawn so, hours later
        require_steps(base.scheduler, config.num_inference_steps, "--num_inference_steps")
    lap("imports and base")
    return Trainer(config, accelerator, base, lap)


class Trainer:
    """Data, model, objective and optimizer of one training, and the acts of a step."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        base: Base,
        lap: Lap = lambda _: None,
        method: Method | None = None,
    ) -> None:
        """lap: is told the name of each part of the work when it is done. method: default: the one
        that the settings name.

        Raises UserError if the photos, the class images or the base cannot serve these settings.
        """
        method = method or METHODS[config.method]
        self.config = config
        self.accelerator = accelerator
        self.data = load_data(config, base, accelerator, lap)

        self.model = build_model(config, base, accelerator, method.model)
        leave_cudnn_attention()
        objective = method.objective(self.model, config, self.data.class_captions)
        aids = objective.make_aids(len(self.data.latents.subject_masks))
        self.trained = {**self.model.concept_parameters(), **aids}
        optimizer = make_optimizer(self.model, config, aids)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.guard = Guard(accelerator, optimizer)
        self.running = RunningMeans(len(self.model.alphas_cumprod))
        self.sums: Losses = {}  # over the parts of the current step

        if config.compile:
            compile_blocks(self.model.unet)
        self.model.vae.to("cpu")  # only the previews still need it

    def draw(self, step: int, part: int = 0, process: int | None = None) -> Batch:
        """A batch of one part of a step, for this process or for another one."""
        process = self.accelerator.process_index if process is None else process
        stream = process + self.accelerator.num_processes * part
        generator = step_generator(self.config.seed, step, stream)

        timesteps = len(self.model.alphas_cumprod)
        batch = draw_batch(self.data.latents, self.config, timesteps, generator)
        return batch.to(self.accelerator.device)

    def losses(self, batch: Batch) -> Losses:
        """Named losses; "loss" is the total."""
        with self.accelerator.autocast():
            losses = self.objective(batch)

        errors = self.accelerator.unwrap_model(self.objective).errors
        if errors:
            self.running.add_by_time(*errors)
        return losses

    def backward(self, losses: Losses) -> None:
        """Adds the gradient of one part of a step."""
        total = self.guard.scale(losses["loss"]) / self.config.gradient_accumulation_steps
        self.accelerator.backward(total)
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def descend(self, step: int) -> Losses:
        """Clips the gradient, and moves the weights if the numbers are finite.

        Returns the step's mean losses.
        """
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), self.config.max_grad_norm)
        self.guard.watch(step, self.sums["loss"], norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        parts = self.config.gradient_accumulation_steps
        means = {name: value / parts for name, value in self.sums.items()}
        self.sums = {}
        self.running.add(means)
        return means

    @torch.no_grad()
    def inspect(self, step: int) -> Statistics:
        """The statistics of a batch of this step: gates and attention, see `Objective.inspect`."""
        objective = self.accelerator.unwrap_model(self.objective)
        self.model.unet.eval()
        with self.accelerator.autocast():
            statistics = objective.inspect(self.draw(step))
        self.set_mode()
        return statistics

    def set_mode(self) -> None:
        """Sets training mode, which gradient checkpointing needs; there is no dropout."""
        self.model.unet.train(self.config.gradient_checkpointing)

    def concept(self, step: int) -> Concept:
        """The concept after `step` steps."""
        return capture_concept(self.model, self.data.references, portable(self.config), step)
