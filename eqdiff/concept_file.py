"""A concept file from a stranger: header, sizes and facts are checked before a tensor is loaded. Metadata is data.

Nothing in a file is trusted: it may claim any size, nest any depth, name any path. What is read here is bounded by the
limits below; names in it are labels and never paths.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eqdiff.config import TrainConfig, UserError

FORMAT = "eqdiff-concept-1"
# settings that sampling needs; all others ride along for the record
NEEDED = (
    "class_word", "fdte", "rra", "rra_layers", "unet_weights", "gate_init", "gate_clamp", "slot_by",
    "reference_prompt", "reference_at_sampling", "guidance_scale", "num_inference_steps", "resolution", "rare_token",
)  # fmt: skip
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}  # of the kinds of numbers that such a file may hold
FACTORS = (".up", ".down")  # what alone is stored in whole numbers: compress.UP, DOWN
MOST_BYTES = 5 * 10**9  # the whole UNet of Stable Diffusion 2 in fp32, with RRA, takes 3.6e9
MOST_HEADER = 2 * 10**6  # it has about 100 bytes a tensor
MOST_METADATA = 10**6
MOST_TENSORS = 5_000
MOST_STEPS = 10**9
MOST_NAME = 255  # of a photo, of the base


class Facts(NamedTuple):
    """What the metadata says, checked."""

    settings: dict[str, Any]
    base_name: str
    base_fingerprint: str
    photos: tuple[str, ...]
    step: int
    kept_energy: float | None


def read_facts(path: Path) -> Facts:
    """The facts of a concept file whose header fits the file. UserError: not there, not a concept, damaged or absurd.

    No more than MOST_HEADER bytes are read, whatever the file claims.
    """
    if not path.is_file():
        raise UserError(f"concept {path}: there is no such file; train one with: bash scripts/train.sh")
    try:
        header = read_header(path)
        about = header.pop("__metadata__", {})
        _demand(isinstance(about, dict), "its metadata is no object")
        if about.get("format") != FORMAT:
            raise UserError(f"{path}: not a concept file of EqDiff; name a concept.safetensors that training wrote")
        return _facts(about.get("concept"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()


def damaged(path: Path, error: object) -> UserError:
    """The refusal of a file that cannot be used, with the reason in few words."""
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path}: damaged ({reason}); train the concept again, or get the file again")


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensors that fit the file, bytes for bytes. ValueError: anything else."""
    size = path.stat().st_size
    _demand(size <= MOST_BYTES, f"{size} bytes are more than any concept has")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        _demand(8 <= size and 2 <= length <= min(size - 8, MOST_HEADER), f"a header of {length} bytes in {size}")
        header = _parsed(file.read(length).decode("utf-8"))
    _demand(isinstance(header, dict), "its header is no object")
    tensors = {name: about for name, about in header.items() if name != "__metadata__"}
    _demand(len(tensors) <= MOST_TENSORS, f"{len(tensors)} tensors")
    total = sum(_bytes_of(name, about) for name, about in tensors.items())
    _demand(total == size - 8 - length, f"its tensors take {total} bytes, and it has {size - 8 - length}")
    return header


def _bytes_of(name: str, about: Any) -> int:
    """What a tensor takes; ValueError unless kind of number, shape and place agree."""
    _demand(len(name) <= MOST_NAME, f"a tensor's name has {len(name)} characters")
    known = isinstance(about, dict) and about.keys() == {"dtype", "shape", "data_offsets"}
    _demand(known and isinstance(about["dtype"], str) and about["dtype"] in BYTES, f"{name} is of no known kind")
    shape, place = about["shape"], about["data_offsets"]
    _demand(_counts(shape) and len(shape) <= 4 and _counts(place) and len(place) == 2, f"{name} has no shape or place")
    _demand(about["dtype"] != "I8" or name.endswith(FACTORS), f"{name} holds whole numbers")
    count = math.prod(shape) * BYTES[about["dtype"]]
    _demand(place[1] - place[0] == count, f"{name} of shape {shape} lies in {place[1] - place[0]} bytes")
    return count


def _counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number for number in numbers)


def _facts(text: Any) -> Facts:
    _demand(isinstance(text, str) and len(text) <= MOST_METADATA, "no description of the concept")
    about = _parsed(text)
    needed = {"settings", "base_name", "base_fingerprint", "photos", "step"}
    _demand(isinstance(about, dict) and needed <= about.keys(), "its description is incomplete")
    json.dumps(about, ensure_ascii=False).encode()  # half a character is no text
    settings, photos, kept = _settings(about["settings"]), about["photos"], about.get("kept_energy")
    for key in ("base_name", "base_fingerprint"):
        _demand(isinstance(about[key], str) and 0 < len(about[key]) <= MOST_NAME, f"{key} is no name")
    _demand(isinstance(photos, list) and all(map(_is_label, photos)), "the names of its photos are none")
    _demand(type(about["step"]) is int and 0 <= about["step"] <= MOST_STEPS, "no number of steps")
    _demand(kept is None or (type(kept) in (int, float) and 0 <= kept <= 1), "kept_energy is no share")
    return Facts(settings, about["base_name"], about["base_fingerprint"], tuple(photos), about["step"], kept)


def _settings(given: Any) -> dict[str, Any]:
    """The settings as they are, each that is known within its range, the needed ones there."""
    _demand(isinstance(given, dict), "no settings")
    missing = [name for name in NEEDED if given.get(name) is None]
    _demand(not missing, f"no {missing[:1]} in its settings")
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    try:
        TrainConfig(**{name: value for name, value in given.items() if name in known})
    except UserError as error:
        raise ValueError(f"its settings: {error}") from None
    return given


def _is_label(name: Any) -> bool:
    """Whether this is the bare name of a file."""
    return (
        isinstance(name, str) and 0 < len(name) <= MOST_NAME and name not in (".", "..") and not set(name) & set("/\0")
    )


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    """An object without double names: two readers could take one each."""
    found = dict(pairs)
    _demand(len(found) == len(pairs), "a name is there twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _demand(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)
