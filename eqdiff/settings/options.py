"""Options from dataclasses: checks of their values, a command line for them, and JSON.

`opt` makes a field with a help text, a range and a role. The field's type says the rest. Allowed
types: str, bool, int, float, Literal of strings, tuple of those, and each of them or None.
Nothing in here depends on which options they are.
"""

import argparse
import dataclasses
import enum
import json
import math
import os
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from eqdiff.errors import SET_UTF8, UserError, require

HUGE = 2**63 - 1  # the largest seed torch takes
WRITTEN_BY = {"written_by": "EqDiff"}  # marks the JSON that we write: see `eqdiff/ours.py`
METAVARS = {int: "N", float: "X", str: "TEXT"}
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
T = TypeVar("T")


class Role(enum.Flag):
    """What a setting is for. The field itself says it, and no other place does."""

    NONE = 0
    PLACE = enum.auto()  # a place on the user's machine: left out of files that are passed on
    FREE = enum.auto()  # may differ when a training is resumed
    CARD = enum.auto()  # listed in the model card
    FIRST = enum.auto()  # what matters first: at the top of the help
    LATER = enum.auto()  # missing in files of older versions, which did what the default does


def opt(
    default: Any,
    text: str,
    low: float = -HUGE,
    high: float = HUGE,
    metavar: tuple[str, ...] | None = None,
    role: Role = Role.NONE,
) -> Any:
    """A dataclass field for one option.

    text: the help text, with the unit. low, high: the closed range of a number, or of each element
    of a tuple. metavar: what the help shows for the elements of a tuple.
    """
    metadata = {"help": text, "low": low, "high": high, "metavar": metavar, "role": role}
    return dataclasses.field(default=default, metadata=metadata)


def names_of(cls: type, role: Role) -> tuple[str, ...]:
    """The names of the dataclass's fields that have this role."""
    return tuple(field.name for field in dataclasses.fields(cls) if role in field.metadata["role"])


def check_fields(config: Any) -> None:
    """Checks type and range of every field; call it in `__post_init__`.

    An int where a float belongs becomes one, a list a tuple, a path a string.
    Raises UserError if a value is of another type or out of range.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        low = field.metadata["low"]
        high = field.metadata["high"]
        try:
            checked = _checked(value, hints[field.name], low, high)
        except ValueError as error:
            text = repr(value)
            text = text if len(text) <= 200 else f"{text[:200]}..."
            raise UserError(f"--{field.name} {text}: must be {error}") from None

        object.__setattr__(config, field.name, checked)


def build_parser(
    cls: type, variants: Mapping[str, Mapping[str, Any]] | None = None
) -> argparse.ArgumentParser:
    """The command line of a dataclass made of `opt` fields.

    The parsed namespace holds only the flags on the command line, without defaults.
    variants: name of a variant -> the defaults that it changes, for the help text.
    """
    parser = _Parser(
        usage="%(prog)s [--flag value ...]",
        description=cls.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    # What matters first, the rest of the dataclass itself, then each dataclass that it inherits.
    first = names_of(cls, Role.FIRST)
    top = parser.add_argument_group("first") if first else None
    groups = {}
    for owner in cls.__mro__:
        if dataclasses.is_dataclass(owner):
            title = "more" if owner is cls else (owner.__doc__ or "").rstrip(".")
            groups[owner] = parser.add_argument_group(title)

    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        arguments = _argument_of(_without_none(hints[field.name]))
        if field.metadata["metavar"]:
            arguments["metavar"] = field.metadata["metavar"]

        owner = next(owner for owner in groups if field.name in owner.__annotations__)
        text = _help_of(field, variants or {}).replace("%", "%%")
        group = top if field.name in first and top else groups[owner]
        group.add_argument(f"--{field.name}", help=text, **arguments)

    return parser


def to_json(config: Any) -> str:
    """A dataclass made of `opt` fields as indented JSON, with the mark that we wrote it."""
    values = {**dataclasses.asdict(config), **WRITTEN_BY}
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def from_json(cls: type[T], text: str) -> T:
    """The inverse of `to_json`. Fields that are not in `text` get their defaults.

    Raises UserError if the JSON is broken, has unknown fields, or bad values.
    """
    what = f"the {cls.__name__}"
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{what} is not readable as JSON ({error}): restore the file") from None

    is_object = isinstance(values, dict)
    require(is_object, f"{what} must be a JSON object, and is {text.strip()[:40]!r}")
    values = {name: value for name, value in values.items() if name not in WRITTEN_BY}

    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = ", ".join(sorted(values.keys() - known))
    require(not unknown, f"unknown settings {unknown} in {what}: written by another version?")

    return cls(**values)


class _Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of leaving the program.

    It takes --no_x for --no-x too, and its help shows the one spelling.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known = self._option_string_actions
        words = list(sys.argv[1:] if args is None else args)
        for place, word in enumerate(words):
            dashed = word.replace("--no_", "--no-", 1)
            if word.startswith("--no_") and word not in known and dashed in known:
                words[place] = dashed
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _help_of(field: dataclasses.Field, variants: Mapping[str, Mapping[str, Any]]) -> str:
    """The help text of a field: what it is, its default, and the defaults of the variants."""
    changed = {
        name: values[field.name] for name, values in variants.items() if field.name in values
    }
    if not changed and field.default in (None, ()):
        return field.metadata["help"]

    defaults = {"default": field.default, **changed}
    text = "; ".join(f"{name}: {_as_flag(value)}" for name, value in defaults.items())
    return f"{field.metadata['help']} ({text})"


def _without_none(hint: Any) -> Any:
    """The type X of `X | None`, and any other type itself."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _argument_of(hint: Any) -> dict[str, Any]:
    """What argparse's add_argument needs to know of a type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}

    if get_origin(hint) is tuple:
        first, *rest = get_args(hint)
        argument = {"type": first, "metavar": METAVARS[first]}
        if rest == [Ellipsis]:
            return {**argument, "nargs": "+", "action": "extend"}  # the flag may be repeated
        return {**argument, "nargs": 1 + len(rest)}

    return {"type": hint, "metavar": METAVARS[hint]}


def _as_flag(value: Any) -> str:
    """A value as the command line spells it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_as_flag, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _checked(value: Any, hint: Any, low: float, high: float) -> Any:
    """`value` as the type `hint`. Raises ValueError that says what it must be."""
    if value is None and _without_none(hint) is not hint:
        return None

    hint = _without_none(hint)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"one of {', '.join(get_args(hint))}")
        return value

    if get_origin(hint) is tuple:
        first, *rest = get_args(hint)
        any_length = rest == [Ellipsis]
        is_list = isinstance(value, list | tuple)
        if not is_list or not (any_length or len(value) == 1 + len(rest)):
            raise ValueError("a list" if any_length else f"a list of {1 + len(rest)}")
        return tuple(_checked(element, first, low, high) for element in value)

    if hint is float and type(value) is int:
        value = float(value)
    if hint is str and isinstance(value, os.PathLike):
        value = os.fspath(value)

    if type(value) is not hint:
        raise ValueError(NAMES[hint])
    if hint is str and not _is_text(value):
        is_utf8 = sys.getfilesystemencoding() == "utf-8"
        raise ValueError("text in UTF-8 without NUL" + ("" if is_utf8 else f"; {SET_UTF8}"))
    if hint in (int, float) and not low <= value <= high:
        raise ValueError(_range_in_words(value, low, high))

    return value


def _is_text(value: str) -> bool:
    """Whether the string is text that files and other programs take."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _range_in_words(value: float, low: float, high: float) -> str:
    """What a number outside its range must be. Of an open end, the one that it passes is named."""
    if low > -HUGE and high < HUGE:
        return f"from {low:g} to {high:g}"
    if not math.isfinite(value):
        return "finite"
    if value < low:
        return f"{low:g} or more"
    return f"{high} or less" if isinstance(value, int) else f"{high:g} or less"
