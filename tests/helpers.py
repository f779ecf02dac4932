"""What several tests need: a tiny training's settings, a trained model, pictures of a concept."""

from pathlib import Path
from typing import Any

import torch

from eqdiff.base import load_base
from eqdiff.concept import Concept, References, capture_concept
from eqdiff.config import preset_config
from eqdiff.encoding import vae_encoder
from eqdiff.latents import TrainingLatents, draw_batch, prepare
from eqdiff.objective import Objective
from eqdiff.setup import new_model

TINY: dict[str, Any] = {
    "resolution": 64,
    "max_train_steps": 5,
    "num_class_images": 4,
    "class_inference_steps": 2,
    "num_inference_steps": 3,
    "reference_pool": 8,
    "validation_steps": 0,
    "log_steps": 2,
    "learning_rate": 1e-3,
    "token_learning_rate": 1e-3,
}


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as command-line words."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def tiny_config(base: Path, subject: Path, *, preset: str = "paper", **changes: Any) -> Any:
    given = {"class_word": "dog toy", "pretrained_model_name_or_path": str(base), "instance_data_dir": str(subject)}
    return preset_config(preset, **{**TINY, **given, **changes})


def tiny_objective(base: Path, subject: Path, **changes: Any) -> tuple[Objective, TrainingLatents]:
    """An objective on the tiny base with class images of noise, and the latents of the tiny subject."""
    from eqdiff.data import load_subject

    config = tiny_config(base, subject, **changes)
    loaded = load_base(str(base))
    photos = load_subject(subject, class_word="dog toy", resolution=64, binary_masks=config.binary_masks)
    generator = torch.Generator().manual_seed(0)
    classes = torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1 if config.with_prior_preservation else None
    latents = prepare(photos, classes, config, vae_encoder(loaded.vae), generator)
    return Objective(new_model(config, loaded), config), latents


def train(objective: Objective, latents: TrainingLatents, steps: int, rate: float = 1e-2) -> list[float]:
    """Plain AdamW steps over the one list; the losses."""
    parameters = list(objective.model.concept_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    losses = []
    for step in range(steps):
        batch = draw_batch(latents, objective.config, 1000, torch.Generator().manual_seed(step))
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def concept_of(objective: Objective, latents: TrainingLatents) -> Concept:
    """The concept of a tiny training."""
    import dataclasses

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    names = tuple(f"{i:02}.jpg" for i in range(len(latents.subject_masks)))
    references = References(latents.targets.mean[:, -1], latents.subject_masks, noise, names)
    return capture_concept(objective.model, references, dataclasses.asdict(objective.config), 5)
