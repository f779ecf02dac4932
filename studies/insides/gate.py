"""Is RRA alive? Gate and reference attention at step 0 and at the end, over the same draws.

    python -m studies.insides.gate CONCEPT [--picture FILE] [--json FILE]

Prints the mean gate M_f inside and outside the subject, and the share of the subject's reference
attention that falls on the reference's subject. By chance that is the share of the reference that
is subject. The draws of t and noise are held out: no training step has their seeds. The picture has
M_f beside each photo (the paper's Fig. 5).
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from eqdiff.batch import Batch, draw_batch
from eqdiff.concept.concept import apply
from eqdiff.concept.file import load_concept
from eqdiff.data.latents import TrainingLatents, prepare
from eqdiff.data.sheets import to_pil
from eqdiff.data.subject import Subject
from eqdiff.data.vae import vae_encoder
from eqdiff.errors import main_guard
from eqdiff.masking import noise_region
from eqdiff.model import new_model
from eqdiff.objective import Objective
from eqdiff.settings.train import TrainConfig
from studies.insides.concepts import base_of, picture_of, save_grid, settings_of, subject_of

DRAWS = 16  # held-out batches
FIRST_SEED = 2**40  # of them; the seeds of training steps are below
TRAIN_TIMESTEPS = 1000  # of Stable Diffusion 1.x
TIMESTEPS = (100, 300, 500, 700)  # of the picture
FIGURES = ("gate_inside", "gate_outside", "dead_share", "mass_on_subject")


def build(config: TrainConfig) -> tuple[Objective, TrainingLatents, Subject]:
    """The objective as training starts it, without class images, and the subject's latents."""
    base = base_of(config)
    subject = subject_of(config)
    generator = torch.Generator().manual_seed(FIRST_SEED)
    latents = prepare(subject, None, config, vae_encoder(base.vae), generator)
    return Objective(new_model(config, base), config), latents, subject


def held_out_batch(objective: Objective, latents: TrainingLatents, number: int) -> Batch:
    """The draws of held-out batch `number`, 0 or more."""
    generator = torch.Generator().manual_seed(FIRST_SEED + number)
    return draw_batch(latents, objective.config, TRAIN_TIMESTEPS, generator)


def measure(objective: Objective, latents: TrainingLatents) -> dict[str, float]:
    """Means over DRAWS held-out batches and all RRA layers, each in [0,1]."""
    sums = torch.zeros(len(FIGURES))
    for number in range(DRAWS):
        report = objective.inspect(held_out_batch(objective, latents, number))
        gates = torch.tensor(list(report["gate"].values())).mean(0)
        sums += torch.tensor([*gates, report["mass"]])
    return dict(zip(FIGURES, (sums / DRAWS).tolist(), strict=True))


def one_sample(
    latents: TrainingLatents, batch: Batch, photo: int, t: int, *, everywhere: bool
) -> Batch:
    """The first sample of a batch, with this photo as target and both branches at timestep t.

    everywhere: whether noise is everywhere, or inside the mask.
    """
    first = {name: value[:1] for name, value in vars(batch).items()}
    mask = latents.noise_masks[photo : photo + 1]
    return dataclasses.replace(
        Batch(**first),
        z0=latents.targets.mean[photo, -1:],
        mask=mask,
        noised=noise_region(mask, torch.tensor([everywhere])),
        t=torch.tensor([t]),
        t_r=torch.tensor([t]),
    )


@torch.no_grad()
def picture(objective: Objective, latents: TrainingLatents, subject: Subject, path: Path) -> None:
    """Draws a row a photo: the photo, then the mean gate of the finest level at each timestep."""
    side = latents.subject_masks.shape[-1]
    size = subject.images.shape[-2:]
    batch = held_out_batch(objective, latents, 0)
    cells = []
    captions = []

    for photo, name in enumerate(subject.names):
        cells.append(to_pil(subject.images[photo]))
        captions.append(name)
        for t in TIMESTEPS:
            everywhere = objective.config.masking != "noise"
            sample = one_sample(latents, batch, photo, t, everywhere=everywhere)
            context = objective.context(sample, record_gates=True)
            objective.predict(sample, context)

            finest = [gate for gate in context.gates.values() if gate.shape[1] == side**2]
            mean = torch.stack(finest).mean(0).reshape(1, side, side)
            cells.append(picture_of(mean, size))
            captions.append(f"M_f, t = {t}")

    save_grid(path, cells, 1 + len(TIMESTEPS), captions)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concept", type=Path)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)

    concept = load_concept(args.concept)
    objective, latents, subject = build(settings_of(args.concept))
    figures = {"start": measure(objective, latents)}
    apply(concept, objective.model)
    figures["end"] = measure(objective, latents)
    figures["chance_mass"] = float(latents.reference_masks.mean())

    for name, value in figures.items():
        print(name, value)
    if args.picture:
        picture(objective, latents, subject, args.picture)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
