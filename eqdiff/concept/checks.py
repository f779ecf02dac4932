"""Checks a concept file from a stranger before a tensor of it is loaded. Metadata is data.

Nothing in a file is trusted: it may claim any size, nest any depth, name any path. The limits below
bound what is read. Names in a file are labels, never paths.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eqdiff.base.identity import Identity
from eqdiff.errors import UserError, reason_of
from eqdiff.settings.train import TrainConfig, recipe_in

FORMAT = "eqdiff-concept-1"
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}  # of the kinds of numbers that a file may hold
FACTORS = (".up", ".down")  # the only tensors stored in whole numbers: compress.UP, DOWN
MOST_BYTES = 5 * 10**9  # the whole UNet of Stable Diffusion 2 in fp32, with RRA, takes 3.6e9
MOST_HEADER = 2 * 10**6  # it has about 100 bytes a tensor
MOST_METADATA = 10**6
MOST_TENSORS = 5_000
MOST_STEPS = 10**9
MOST_NAME = 255  # characters of a name: a photo's, the base's, a tensor's
NEEDED = {"settings", "base_name", "base_fingerprint", "photos", "step"}  # in the description


class Facts(NamedTuple):
    """The metadata of a concept file, checked."""

    settings: dict[str, Any]
    base_name: str
    base_fingerprint: str
    photos: tuple[str, ...]
    step: int
    kept_energy: float | None
    identity: Identity | None


def read_facts(path: Path) -> Facts:
    """The facts of a concept file whose header fits the file.

    At most MOST_HEADER bytes of the header are read, whatever length the file claims.

    Raises UserError if the file does not exist, is not a concept, or is damaged or absurd.
    """
    if not path.is_file():
        raise UserError(
            f"concept {path}: there is no such file; train one with: bash scripts/train.sh"
        )

    try:
        header = read_header(path)
        metadata = header.pop("__metadata__", {})
        _demand(isinstance(metadata, dict), "its metadata is no object")
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"{path}: not a concept file of EqDiff; name a concept.safetensors "
                "that training wrote"
            )
        return _facts(metadata.get("concept"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def damaged(path: Path, error: object) -> UserError:
    """The error for a file that cannot be used, with a short reason."""
    reason = reason_of(error)
    return UserError(f"{path}: damaged ({reason}); train the concept again, or get the file again")


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file whose tensors fill the file exactly.

    Raises ValueError if the file is anything else.
    """
    size = path.stat().st_size
    _demand(size <= MOST_BYTES, f"{size} bytes are more than any concept has")

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        possible = 8 <= size and 2 <= length <= min(size - 8, MOST_HEADER)
        _demand(possible, f"a header of {length} bytes in {size}")
        header = _parsed(file.read(length).decode("utf-8"))
    _demand(isinstance(header, dict), "its header is no object")

    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    _demand(len(tensors) <= MOST_TENSORS, f"{len(tensors)} tensors")

    total = sum(_bytes_of(name, entry) for name, entry in tensors.items())
    rest = size - 8 - length
    _demand(total == rest, f"its tensors take {total} bytes, and it has {rest}")
    return header


def _bytes_of(name: str, entry: Any) -> int:
    """The bytes that a tensor takes, from its entry in the header.

    Raises ValueError unless its kind of number, its shape and its place agree.
    """
    _demand(len(name) <= MOST_NAME, f"a tensor's name has {len(name)} characters")

    complete = isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}
    known = complete and isinstance(entry["dtype"], str) and entry["dtype"] in BYTES
    _demand(known, f"{name} is of no known kind")

    dtype = entry["dtype"]
    shape = entry["shape"]
    offsets = entry["data_offsets"]
    placed = _are_counts(shape) and len(shape) <= 4 and _are_counts(offsets) and len(offsets) == 2
    _demand(placed, f"{name} has no shape or place")
    _demand(dtype != "I8" or name.endswith(FACTORS), f"{name} holds whole numbers")

    needed = math.prod(shape) * BYTES[dtype]
    taken = offsets[1] - offsets[0]
    _demand(taken == needed, f"{name} of shape {shape} lies in {taken} bytes")
    return needed


def _are_counts(numbers: Any) -> bool:
    if not isinstance(numbers, list):
        return False
    return all(type(number) is int and 0 <= number for number in numbers)


def _facts(text: Any) -> Facts:
    """The facts in a concept's description, which is JSON. Raises ValueError if one is wrong."""
    _demand(isinstance(text, str) and len(text) <= MOST_METADATA, "no description of the concept")
    description = _parsed(text)
    complete = isinstance(description, dict) and NEEDED <= description.keys()
    _demand(complete, "its description is incomplete")
    json.dumps(description, ensure_ascii=False).encode()  # half a character is no text

    settings = _settings(description["settings"])
    for key in ("base_name", "base_fingerprint"):
        name = description[key]
        _demand(isinstance(name, str) and 0 < len(name) <= MOST_NAME, f"{key} is no name")

    photos = description["photos"]
    labelled = isinstance(photos, list) and all(map(_is_label, photos))
    _demand(labelled, "the names of its photos are none")

    step = description["step"]
    _demand(type(step) is int and 0 <= step <= MOST_STEPS, "no number of steps")

    kept = description.get("kept_energy")
    is_share = kept is None or (type(kept) in (int, float) and 0 <= kept <= 1)
    _demand(is_share, "kept_energy is no share")

    base = description.get("base")  # files of older versions do not have it
    identity = None if base is None else Identity.parsed(base)

    return Facts(
        settings,
        description["base_name"],
        description["base_fingerprint"],
        tuple(photos),
        step,
        kept,
        identity,
    )


def _settings(settings: Any) -> dict[str, Any]:
    """The settings, unchanged. Raises ValueError if one is missing or out of its range."""
    _demand(isinstance(settings, dict), "no settings")
    known = {field.name for field in dataclasses.fields(TrainConfig)}

    try:
        recipe_in(settings)
        TrainConfig(**{name: value for name, value in settings.items() if name in known})
    except UserError as error:
        raise ValueError(f"its settings: {error}") from None
    return settings


def _is_label(name: Any) -> bool:
    """Whether this is the bare name of a file."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= MOST_NAME
        and name not in (".", "..")
        and not set(name) & set("/\0")
    )


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)


def _without_doubles(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    """An object in which each name stands once: of a double name, two readers could differ."""
    content = dict(pairs)
    _demand(len(content) == len(pairs), "a name is there twice")
    return content


def _refuse_constant(name: str) -> None:
    """NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{name} is no number")


def _demand(condition: object, message: str) -> None:
    """Raises ValueError(message) unless `condition` holds."""
    if not condition:
        raise ValueError(message)
