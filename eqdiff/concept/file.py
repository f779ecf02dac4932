"""concept.safetensors on disk: exact keys and shapes, the base's fingerprint, no pickle."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eqdiff.concept.checks import FORMAT, damaged, digest_of, read_facts
from eqdiff.concept.compress import (
    SCALES,
    factors,
    kept_energy,
    ranks_within,
    split_all,
    start_values,
)
from eqdiff.concept.concept import NO_REFERENCES, Concept, References
from eqdiff.errors import UserError, lacks_memory
from eqdiff.files import storable, write_tensors
from eqdiff.finite import first_broken, require_usable
from eqdiff.methods.registry import method_in
from eqdiff.model import Customized

LOG = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEADER_GROWTH = 64  # bytes a matrix: the header's digits grow with the ranks


def save_concept(concept: Concept, path: Path, *, dtype: str = "fp32") -> None:
    """Writes the file atomically: a reader sees the previous one or the whole new one.

    dtype: "fp32", "bf16" or "fp16".

    Raises UserError if it cannot be written, or `load_concept` would refuse it. A previous file
    then stays.
    """
    tensors, metadata = _content(concept, dtype)
    require_writable(tensors, path, dtype)
    write_tensors(path, tensors, metadata, read_facts)


def require_writable(tensors: dict[str, Tensor], path: Path, dtype: str) -> None:
    """Raises UserError if tensors in `dtype` would be refused when they are read from `path`."""
    try:
        require_usable(tensors)
    except ValueError as error:
        rate = "--token_learning_rate" if "tokens.rows" in str(error) else "--learning_rate"
        remedy = "write it in fp32, or " if dtype != "fp32" else ""
        raise UserError(
            f"{path}: not written, {error} in {dtype}; {remedy}train it again with a lower {rate}"
        ) from None


def safe_dtype(concept: Concept, dtype: str) -> str:
    """`dtype`, or fp32 with a warning where a value is too large for it: no training is lost."""
    tensors, _ = _content(concept, dtype)
    if first_broken(tensors.items()) is None:
        return dtype
    LOG.warning("the concept has values too large for %s: it is written in fp32", dtype)
    return "fp32"


def compress_concept(
    concept: Concept, model: Customized, megabytes: float, dtype: str = "fp16"
) -> Concept:
    """The concept that `model` carries, for a file of at most `megabytes` [10^6 bytes].

    It is stored whole in `dtype` if that fits, else low-rank (see `compress`).

    Raises UserError if it does not fit even without any change to the base's weights.
    """
    learned = {name: value.detach().float() for name, value in model.concept_parameters().items()}
    on_cpu = {name: value.cpu() for name, value in learned.items()}
    whole = replace(concept, parameters=on_cpu, kept_energy=None)
    limit = int(megabytes * 1e6)
    if _file_size(whole, dtype) <= limit:
        return whole

    splits = split_all(learned, start_values(model))
    rest = {name: value for name, value in whole.parameters.items() if name not in splits}
    no_ranks = dict.fromkeys(splits, 0)
    placeholder = 1 / 3  # it has more digits than the rounded share below
    smallest = replace(whole, parameters=rest | factors(splits, no_ranks), kept_energy=placeholder)
    least = _file_size(smallest, dtype) + HEADER_GROWTH * len(splits)
    if least > limit:
        raise UserError(
            f"--compress {megabytes:g}: too little, without any weights it takes "
            f"{least / 1e6:.3g} MB"
        )

    ranks = ranks_within(splits, limit - least)
    kept = round(kept_energy(splits, ranks), 6)
    return replace(whole, parameters=rest | factors(splits, ranks), kept_energy=kept)


def _content(concept: Concept, dtype: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a concept's file.

    This is the one place that decides whether references go into the file.
    """
    tensors = {}
    for name, value in concept.parameters.items():
        exact = name == SCALES or not value.is_floating_point()
        tensors[name] = value if exact else value.to(DTYPES[dtype])

    needed = method_in(concept.settings).references
    references = concept.references if needed else NO_REFERENCES
    embed = concept.settings.get("embed_reference", True)
    parts = {"reference.noise": references.noise} if needed else {}
    if embed and references.names:
        parts["reference.latents"] = references.latents
        parts["reference.masks"] = references.masks
    for name, value in parts.items():
        tensors[name] = value.to(DTYPES[dtype]) if concept.compressed else value

    description = {
        "settings": concept.settings,
        "base_name": Path(concept.base_name).name or "base",  # a stranger's file may say "."
        "base_fingerprint": concept.base_fingerprint,
        "photos": references.names if embed else (),
        "step": concept.step,
    }
    if concept.kept_energy is not None:
        description["kept_energy"] = concept.kept_energy
    if concept.identity is not None:
        description["base"] = asdict(concept.identity)

    return tensors, {"format": FORMAT, "concept": json.dumps(description)}


def _file_size(concept: Concept, dtype: str) -> int:
    """Bytes of the concept's file."""
    tensors, metadata = _content(concept, dtype)
    return len(save(storable(tensors), metadata))


def load_concept(path: str | Path) -> Concept:
    """Reads a concept file, or that of a folder. It may be a stranger's.

    Tensors are fp32, factors int8.

    Raises UserError if the file does not exist, is not a concept, is damaged, or holds values
    that are not finite or too large to draw with.
    """
    path = Path(path)
    path = path / "concept.safetensors" if path.is_dir() else path
    facts = read_facts(path)

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        needed = method_in(facts.settings).references
        references = _references(tensors, facts.photos) if needed else NO_REFERENCES
        require_usable(tensors)
        fingerprint = digest_of(path)[:16]
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise damaged(path, error) from None

    parameters = {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    return Concept(
        parameters=parameters,
        references=references,
        settings=facts.settings,
        base_name=facts.base_name,
        base_fingerprint=facts.base_fingerprint,
        step=facts.step,
        hash=fingerprint,
        kept_energy=facts.kept_energy,
        identity=facts.identity,
    )


def _references(tensors: dict[str, Tensor], names: tuple[str, ...]) -> References:
    """Takes the references out of a file's tensors. Without names the file has their noise alone.

    Raises ValueError if one is missing, or their shapes do not go together.
    """
    noise = tensors.pop("reference.noise", None)
    latents = tensors.pop("reference.latents", None)
    masks = tensors.pop("reference.masks", None)

    lacking = noise is None or noise.ndim != 4 or len(noise) != 1
    if lacking or (names and (latents is None or masks is None)):
        raise ValueError("its references are missing")
    if not names:
        latents = noise[:0]
        masks = noise[:0, :1]

    channels, height, width = noise.shape[1:]
    expected = ((len(names), channels, height, width), (len(names), 1, height, width))
    if (latents.shape, masks.shape) != expected:
        raise ValueError("its references do not go together")
    require_usable({"noise": noise, "latents": latents, "masks": masks})
    return References(latents.float(), masks.float(), noise.float(), names)
