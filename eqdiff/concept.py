"""concept.safetensors <-> model, strict: exact keys and shapes, the base's fingerprint, no pickle."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from eqdiff.base import Base
from eqdiff.compress import SCALES, expand, factors, is_compressed, kept_energy, ranks_within, split_all, start_values
from eqdiff.concept_file import FORMAT, damaged, digest_of, read_facts
from eqdiff.config import UserError
from eqdiff.model import EqDiff

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class References:
    """What sampling attends to, so that it needs no photos (who has the file can decode them from it).

    latents (n,4,h,w) scaled means; masks (n,1,h,w); noise (1,4,h,w), fixed for the subject; names of the photos.
    n is 0 where the file was told not to carry them: all but the noise is then left out of it, the names too.
    """

    latents: Tensor
    masks: Tensor
    noise: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class Concept:
    """A learned subject: the concept parameters by name, its references, the training's settings, its base.

    parameters: as the file has them, so of a compressed one the factors (see `compress`); kept_energy: of that, how
    much of the change they keep, 0 to 1.
    """

    parameters: dict[str, Tensor]
    references: References
    settings: dict[str, Any]
    base_name: str
    base_fingerprint: str
    step: int
    hash: str = ""
    kept_energy: float | None = None

    @property
    def rra(self) -> bool:
        return self.settings["rra"]

    @property
    def compressed(self) -> bool:
        return is_compressed(self.parameters)


def capture_concept(model: EqDiff, references: References, settings: dict[str, Any], step: int) -> Concept:
    """The concept that `model` carries now; tensors are copies on the CPU, in fp32."""
    parameters = {n: p.detach().float().cpu().clone() for n, p in model.concept_parameters().items()}
    return Concept(parameters, references, settings, model.base_name, model.base_fingerprint, step)


def compress_concept(concept: Concept, model: EqDiff, megabytes: float, dtype: str = "fp16") -> Concept:
    """The concept that `model` carries, so that its file has at most `megabytes` [10^6 bytes]: whole in `dtype` if that
    fits, else low-rank (see `compress`). UserError: not even without any change to the base's weights does it."""
    learned = {name: p.detach().float() for name, p in model.concept_parameters().items()}
    whole = replace(concept, parameters={name: value.cpu() for name, value in learned.items()}, kept_energy=None)
    limit = int(megabytes * 1e6)
    if _file_size(whole, dtype) <= limit:
        return whole
    splits = split_all(learned, start_values(model))
    rest = {name: value for name, value in whole.parameters.items() if name not in splits}
    nothing = replace(whole, parameters=rest | factors(splits, dict.fromkeys(splits, 0)), kept_energy=1 / 3)
    least = _file_size(nothing, dtype) + 64 * len(splits)  # the header's digits grow with the ranks
    if least > limit:
        raise UserError(f"--compress {megabytes:g}: too little, without any weights it takes {least / 1e6:.3g} MB")
    ranks = ranks_within(splits, limit - least)
    return replace(whole, parameters=rest | factors(splits, ranks), kept_energy=round(kept_energy(splits, ranks), 6))


def save_concept(concept: Concept, path: Path, *, dtype: str = "fp32") -> None:
    """Writes the file beside and renames it: a reader sees the former one or the whole new one.

    UserError: it cannot be written.
    """
    write_tensors(path, *_content(concept, dtype))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, beside, on the disk, and renamed. UserError: it cannot be written."""
    beside = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, beside, metadata)
        sync(beside)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); free some space or write somewhere else") from None


def sync(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _content(concept: Concept, dtype: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a concept's file. The one place that decides whether references go into it."""
    references, embed = concept.references, concept.settings.get("embed_reference", True)
    exact = {n for n, t in concept.parameters.items() if n == SCALES or not t.is_floating_point()}
    tensors = {n: t if n in exact else t.to(DTYPES[dtype]) for n, t in concept.parameters.items()}
    kept = {"reference.noise": references.noise}
    if embed and references.names:
        kept |= {"reference.latents": references.latents, "reference.masks": references.masks}
    tensors |= {n: t.to(DTYPES[dtype]) if concept.compressed else t for n, t in kept.items()}
    about = {
        "settings": concept.settings,
        "base_name": Path(concept.base_name).name,
        "base_fingerprint": concept.base_fingerprint,
        "photos": references.names if embed else (),
        "step": concept.step,
    }
    about |= {} if concept.kept_energy is None else {"kept_energy": concept.kept_energy}
    return {n: t.contiguous() for n, t in tensors.items()}, {"format": FORMAT, "concept": json.dumps(about)}


def _file_size(concept: Concept, dtype: str) -> int:
    return len(save(*_content(concept, dtype)))


def load_concept(path: str | Path) -> Concept:
    """Reads a concept file, which may be a stranger's. UserError: not there, not a concept, damaged, not finite."""
    path = Path(path)
    facts = read_facts(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        references = _references(tensors, facts.photos)
        _require_numbers(tensors)
        mark = digest_of(path)[:16]
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from None
    return Concept(
        parameters={name: t.float() if t.is_floating_point() else t for name, t in tensors.items()},
        references=references,
        settings=facts.settings,
        base_name=facts.base_name,
        base_fingerprint=facts.base_fingerprint,
        step=facts.step,
        hash=mark,
        kept_energy=facts.kept_energy,
    )


def _references(tensors: dict[str, Tensor], names: tuple[str, ...]) -> References:
    """Takes the references out of a file's tensors; no names: the file has their noise alone. ValueError: missing, or
    of shapes that do not go together."""
    found = {part: tensors.pop(f"reference.{part}", None) for part in ("noise", "latents", "masks")}
    noise = found["noise"]
    if noise is None or noise.ndim != 4 or len(noise) != 1 or (names and None in (found["latents"], found["masks"])):
        raise ValueError("its references are missing")
    if not names:
        found = {"noise": noise, "latents": noise[:0], "masks": noise[:0, :1]}
    channels, height, width = noise.shape[1:]
    wanted = ((len(names), channels, height, width), (len(names), 1, height, width))
    if (found["latents"].shape, found["masks"].shape) != wanted:
        raise ValueError("its references do not go together")
    _require_numbers(found)
    return References(*(found[part].float() for part in ("latents", "masks", "noise")), names)


def _require_numbers(tensors: dict[str, Tensor]) -> None:
    """ValueError naming the first tensor that is not finite throughout."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")


def model_for(concept: Concept, base: Base) -> EqDiff:
    """`base` carrying the concept. UserError: another base than the concept's, or parameters that do not fit."""
    if base.fingerprint != concept.base_fingerprint:
        raise UserError(
            f"this concept was trained on the base {concept.base_name} ({concept.base_fingerprint}), not on "
            f"{base.name} ({base.fingerprint}); name its own with --pretrained_model_name_or_path"
        )
    settings, rows = concept.settings, concept.parameters.get("tokens.rows")
    width = base.text_encoder.get_input_embeddings().embedding_dim
    if rows is None or rows.shape != (2 if settings["fdte"] else 1, width):
        raise UserError(f"this concept does not fit the base {base.name}: no token rows of width {width} in it")
    stand_in = base.tokenizer(settings["rare_token"], add_special_tokens=False).input_ids
    model = EqDiff(
        base,
        torch.zeros_like(rows),
        rra=settings["rra"],
        rra_layers=settings["rra_layers"],
        unet_weights=settings["unet_weights"],
        gate_init=settings["gate_init"],
        clamp=settings["gate_clamp"],
        slot_by=settings["slot_by"],
        stand_in=stand_in[0] if stand_in else 0,
    )
    apply(concept, model)
    _require_room(concept, base, model)
    return model


def _require_room(concept: Concept, base: Base, model: EqDiff) -> None:
    """UserError unless the references are latents of the base at the concept's resolution."""
    side = concept.settings["resolution"] // 2 ** (len(base.vae.config.block_out_channels) - 1)
    wanted, found = (base.unet.config.in_channels, side, side), tuple(concept.references.noise.shape[1:])
    if found != wanted:
        model.detach()
        raise UserError(f"this concept does not fit the base {base.name}: references {found} and not {wanted}")


@torch.no_grad()
def apply(concept: Concept, model: EqDiff) -> None:
    """Puts the concept's values into `model`, all of them and nothing else. UserError: keys or shapes differ."""
    wanted, given = model.concept_parameters(), concept.parameters
    if concept.compressed:
        given = expand(given, start_values(model))
        broken = [name for name, value in given.items() if not value.isfinite().all()]
        if broken:
            model.detach()
            raise UserError(f"this concept is damaged: {broken[0]} is not finite; train it again")
    differing = sorted(set(wanted) ^ set(given))
    differing += [n for n in wanted if n in given and wanted[n].shape != given[n].shape]
    if differing:
        model.detach()
        raise UserError(
            f"this concept does not fit the base {model.base_name}: {differing[0]} and {len(differing) - 1} more "
            "differ; name the base it was trained on with --pretrained_model_name_or_path"
        )
    for name, parameter in wanted.items():
        parameter.copy_(given[name])
