"""Dataclass fields as options: checked on construction, a command line made from them, JSON. Knows nothing of EqDiff.

A field made by `opt` carries its help text and its range; its type says the rest. Allowed types: str, bool, int, float,
Literal of strings, tuple of those, each of them or None.
"""

import argparse
import dataclasses
import errno
import functools
import json
import os
import sys
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_TO_BE_HAD = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
    errno.EIO,
)  # fmt: skip
HUGE = 2**63 - 1  # the largest seed torch takes
LAUNCHED = "EQDIFF_LAUNCHED"  # set in the processes that `launch` starts
METAVARS = {int: "N", float: "X", str: "TEXT"}
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class UserError(Exception):
    """Something the user got wrong: what, where, what to do. Shown as one line `error: ...`, exit status 2."""

    def __str__(self) -> str:
        line = " ".join(super().__str__().splitlines())
        return "".join("?" if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in line)  # no commands to a terminal


def require(condition: object, message: str) -> None:
    """Raise UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def opt(default: Any, text: str, low: float = -HUGE, high: float = HUGE, metavar: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with its help text (name the unit in it) and its closed range, which holds for each element."""
    metadata = {"help": text, "low": low, "high": high, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def check_fields(config: Any) -> None:
    """For `__post_init__`: every field has its type and range, else UserError. int passes for float, list for tuple."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        try:
            checked = _checked(value, hint, field.metadata["low"], field.metadata["high"])
        except ValueError as error:
            shown = repr(value)
            shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
            raise UserError(f"--{field.name} {shown}: must be {error}") from None
        object.__setattr__(config, field.name, checked)


def build_parser(cls: type, variants: Mapping[str, Mapping[str, Any]] | None = None) -> argparse.ArgumentParser:
    """The command line of a dataclass made of `opt` fields; it yields only what the user gave.

    `variants`: name -> the defaults that this variant changes, for the help text.
    """
    parser = _Parser(
        usage="%(prog)s [--flag value ...]",
        description=cls.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        defaults = {name: values[field.name] for name, values in (variants or {}).items() if field.name in values}
        shown = "; ".join(f"{name}: {_shown(value)}" for name, value in {"default": field.default, **defaults}.items())
        text = field.metadata["help"] + (f" ({shown})" if defaults or field.default not in (None, ()) else "")
        how = _how_to_parse(_without_none(hints[field.name]))
        if field.metadata["metavar"]:
            how["metavar"] = field.metadata["metavar"]
        parser.add_argument(f"--{field.name}", help=text.replace("%", "%%"), **how)
    return parser


def to_json(config: Any) -> str:
    """Every field of a dataclass made of `opt` fields, indented."""
    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"


def from_json(cls: type[T], text: str) -> T:
    """The inverse of `to_json`. Fields that `text` lacks get their default; UserError: unknown ones, broken JSON."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"the {cls.__name__} is not readable as JSON ({error}): restore the file") from None
    require(isinstance(values, dict), f"the {cls.__name__} must be a JSON object, and is {text.strip()[:40]!r}")
    unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(cls)})  # type: ignore[arg-type]
    require(not unknown, f"unknown settings {', '.join(unknown)} in the {cls.__name__}: written by another version?")
    return cls(**values)


def main_guard(main: Callable[P, R]) -> Callable[P, R]:
    """Decorator of an entry script's main: UserError and a full disk give one line `error: ...` and exit status 2, an
    interrupt status 130. Of several processes under `launch` each hands its message over, which is said once."""

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            message = str(error)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            message = _of_the_disk(error)
            if message is None and hand_over(traceback.format_exc().rstrip()):
                sys.exit(1)
            if message is None:
                raise
        if not hand_over(f"error: {message}"):
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    return guarded


def _of_the_disk(error: Exception) -> str | None:
    """What to say of an error that the disk made, or the name of a file; None: something else made it."""
    if not isinstance(error, OSError) or error.errno not in (*FULL, *NOT_TO_BE_HAD):
        return None
    if error.errno in FULL:
        return f"the disk is full, writing {error.filename or 'the results'}: free some space and run again"
    if error.filename is None:
        return None
    return f"{str(error.filename)[:200]}: {error.strerror}; see to that file or folder, or name another"


def hand_over(message: str) -> bool:
    """Leaves the last words of one of several processes to the `launch` that started it; False: none did."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or LAUNCHED not in os.environ:
        return False
    with open(file, "w") as out:
        json.dump({"message": message, "timestamp": int(time.time())}, out)
    return True


def require_processes(accelerator: Any) -> None:
    """UserError unless as many processes run together as were started: accelerate may take them for strangers."""
    wanted, found = int(os.environ.get("WORLD_SIZE", 1)), accelerator.num_processes
    require(found == wanted, f"{wanted} processes were started but {found} run together; see README")


class _OnOff(argparse.BooleanOptionalAction):
    """--x, --no-x, and --no_x for those who write all flags with underscores."""

    def __init__(self, option_strings: Sequence[str], dest: str, **how: Any) -> None:
        super().__init__(option_strings, dest, **how)
        self.option_strings = [*self.option_strings, f"--no_{dest}"]

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not (option_string or "").startswith(("--no-", "--no_")))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _how_to_parse(hint: Any) -> dict[str, Any]:
    if hint is bool:
        return {"action": _OnOff}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        first, *rest = get_args(hint)
        # any number: the flag may also be repeated
        many = {"nargs": "+", "action": "extend"} if rest == [Ellipsis] else {"nargs": 1 + len(rest)}
        return {"type": first, "metavar": METAVARS[first], **many}
    return {"type": hint, "metavar": METAVARS[hint]}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _checked(value: Any, hint: Any, low: float, high: float) -> Any:
    """`value` as the type `hint`, or ValueError with what it must be."""
    if value is None and _without_none(hint) is not hint:
        return None
    hint = _without_none(hint)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        first, *rest = get_args(hint)
        if not isinstance(value, list | tuple) or (rest != [Ellipsis] and len(value) != 1 + len(rest)):
            raise ValueError("a list" if rest == [Ellipsis] else f"a list of {1 + len(rest)}")
        return tuple(_checked(element, first, low, high) for element in value)
    if hint is float and type(value) is int:
        value = float(value)
    if hint is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if type(value) is not hint:
        raise ValueError({bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint])
    if hint is str and not _is_text(value):
        raise ValueError("text in UTF-8 without NUL")
    if hint in (int, float) and not low <= value <= high:
        raise ValueError(_range_in_words(low, high))
    return value


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _range_in_words(low: float, high: float) -> str:
    if high == HUGE:
        return f"{low:g} or more" if low > -HUGE else "finite"
    return f"from {low:g} to {high:g}"
