"""concept.safetensors <-> model, strict: exact keys and shapes, the base's fingerprint, no pickle."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eqdiff.base import Base
from eqdiff.config import UserError
from eqdiff.model import EqDiff

FORMAT = "eqdiff-concept-1"
REFERENCES = ("reference.latents", "reference.masks", "reference.noise")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# settings that sampling needs; all others ride along for the record
NEEDED = (
    "class_word", "fdte", "rra", "rra_layers", "unet_weights", "gate_clamp", "slot_by", "reference_prompt",
    "reference_at_sampling",
)  # fmt: skip
DEFAULTS = ("guidance_scale", "num_inference_steps", "resolution", "rare_token")


@dataclass(frozen=True)
class References:
    """What sampling attends to, so that it needs no photos (who has the file can decode them from it).

    latents (n,4,h,w) scaled means; masks (n,1,h,w); noise (1,4,h,w), fixed for the subject; names of the photos.
    """

    latents: Tensor
    masks: Tensor
    noise: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Concept:
    """A learned subject: the concept parameters by name, its references, the training's settings, its base."""

    parameters: dict[str, Tensor]
    references: References
    settings: dict[str, Any]
    base_name: str
    base_fingerprint: str
    step: int
    hash: str = ""

    @property
    def rra(self) -> bool:
        return self.settings["rra"]


def capture_concept(model: EqDiff, references: References, settings: dict[str, Any], step: int) -> Concept:
    """The concept that `model` carries now; tensors are copies on the CPU, in fp32."""
    parameters = {n: p.detach().float().cpu().clone() for n, p in model.concept_parameters().items()}
    return Concept(parameters, references, settings, model.base_name, model.base_fingerprint, step)


def save_concept(concept: Concept, path: Path, *, dtype: str = "fp32") -> None:
    """Writes the file beside and renames it: a reader sees the former one or the whole new one.

    UserError: it cannot be written.
    """
    kind = DTYPES[dtype]
    references = concept.references
    tensors = {name: tensor.to(kind).contiguous() for name, tensor in concept.parameters.items()}
    tensors |= dict(zip(REFERENCES, (references.latents, references.masks, references.noise), strict=True))
    about = {
        "settings": concept.settings,
        "base_name": Path(concept.base_name).name,
        "base_fingerprint": concept.base_fingerprint,
        "photos": references.names,
        "step": concept.step,
    }
    beside = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {n: t.contiguous() for n, t in tensors.items()}, beside, {"format": FORMAT, "concept": json.dumps(about)}
        )
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); free some space or give another --output_dir") from None


def load_concept(path: str | Path) -> Concept:
    """Reads a concept file. UserError: not there, not a concept, or damaged."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"concept {path}: there is no such file; train one with: bash scripts/train.sh")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise UserError(f"{path}: not a concept file of EqDiff; name a concept.safetensors that training wrote")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        facts = json.loads(about["concept"])
        references = References(*(tensors.pop(name) for name in REFERENCES), names=tuple(facts["photos"]))
        missing = [name for name in NEEDED + DEFAULTS if name not in facts["settings"]]
        if missing:
            raise KeyError(missing[0])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); train the concept again") from None
    return Concept(
        parameters={name: tensor.float() for name, tensor in tensors.items()},
        references=references,
        settings=facts["settings"],
        base_name=facts["base_name"],
        base_fingerprint=facts["base_fingerprint"],
        step=facts["step"],
        hash=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    )


def model_for(concept: Concept, base: Base) -> EqDiff:
    """`base` carrying the concept. UserError: another base than the concept's, or parameters that do not fit."""
    if base.fingerprint != concept.base_fingerprint:
        raise UserError(
            f"this concept was trained on the base {concept.base_name} ({concept.base_fingerprint}), not on "
            f"{base.name} ({base.fingerprint}); name its own with --pretrained_model_name_or_path"
        )
    settings = concept.settings
    stand_in = base.tokenizer(settings["rare_token"], add_special_tokens=False).input_ids
    model = EqDiff(
        base,
        torch.zeros_like(concept.parameters["tokens.rows"]),
        rra=settings["rra"],
        rra_layers=settings["rra_layers"],
        unet_weights=settings["unet_weights"],
        clamp=settings["gate_clamp"],
        slot_by=settings["slot_by"],
        stand_in=stand_in[0] if stand_in else 0,
    )
    apply(concept, model)
    return model


@torch.no_grad()
def apply(concept: Concept, model: EqDiff) -> None:
    """Puts the concept's values into `model`, all of them and nothing else. UserError: keys or shapes differ."""
    wanted = model.concept_parameters()
    differing = sorted(set(wanted) ^ set(concept.parameters))
    differing += [n for n in wanted if n in concept.parameters and wanted[n].shape != concept.parameters[n].shape]
    if differing:
        model.detach()
        raise UserError(
            f"this concept does not fit the base {model.base_name}: {differing[0]} and {len(differing) - 1} more "
            "differ; name the base it was trained on with --pretrained_model_name_or_path"
        )
    for name, parameter in wanted.items():
        parameter.copy_(concept.parameters[name])
