"""Teach Stable Diffusion 1.x a subject: a folder of photos -> concept.safetensors.

python train_eqdiff.py --instance_data_dir photos/mug --class_word mug [--help]

Equilibrated Diffusion, Sec. 4.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import eqdiff.process.early  # noqa: F401  first: for Ctrl-C while the rest is imported
from eqdiff.errors import main_guard
from eqdiff.settings.places import is_bundled, is_bundled_subject
from eqdiff.settings.presets import parse, resolve
from eqdiff.settings.train import TrainConfig
from eqdiff.training.results import closing_line, require_no_concept
from eqdiff.training.signals import Signals
from eqdiff.training.stop import Laps
from eqdiff.training.trackers import require_tracker
from eqdiff.wording import clean, start_logging

if TYPE_CHECKING:
    from accelerate import Accelerator

    from eqdiff.training.keeper import Start

TOY_WARNING = (
    "note: this is the toybox base, which knows a small drawn world and cannot draw real photos; "
    "for yours, name a Stable Diffusion 1.x folder: --pretrained_model_name_or_path FOLDER, "
    "or EQDIFF_BASE=FOLDER"
)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    start_logging()
    with Signals() as signals:
        config = resolve(parse(TrainConfig, argv))
        require_tracker(config.report_to)
        require_no_concept(config)
        photos_are_real = not is_bundled_subject(config.instance_data_dir)
        toy = is_bundled(config.pretrained_model_name_or_path) and photos_are_real
        lap = Laps()

        # torch takes seconds: only once the settings are right
        from eqdiff.training.start import open_run, start_point

        with open_run(config) as accelerator:
            if toy:
                accelerator.print(TOY_WARNING)
            start = start_point(config, accelerator.num_processes)
            train(config, accelerator, start, signals, lap)
            if toy:
                accelerator.print(TOY_WARNING)


def train(
    config: TrainConfig,
    accelerator: "Accelerator",
    start: "Start",
    signals: Signals,
    lap: Laps,
) -> None:
    """Makes everything ready, loops over the steps, and writes the concept."""
    from eqdiff.training.keeper import Keeper
    from eqdiff.training.trainer import build_trainer

    trainer = build_trainer(config, accelerator, lap)
    keeper = Keeper(trainer, signals, lap)
    for line in keeper.announcement():
        accelerator.print(clean(line))
    keeper.start_run(start)

    for step in keeper.steps():
        for part in range(config.gradient_accumulation_steps):
            batch = trainer.draw(step, part)  # photo, band, t, noise, reference
            losses = trainer.losses(batch)  # Eq. 3-10
            trainer.backward(losses)

        means = trainer.descend(step)  # clip, guard, AdamW
        keeper.after(step, means)  # log, preview, checkpoint

    keeper.finish()  # concept.safetensors and its card
    accelerator.print(f"time: {lap}")
    accelerator.print(clean(closing_line(config)))


if __name__ == "__main__":
    main(sys.argv[1:])
