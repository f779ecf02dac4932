"""Prompts: where the subject goes in them, which characters they may hold, files of them."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from eqdiff.errors import UserError, require

SLOTS = ("{}", "<new1>")  # what a prompt may write for the subject; also tokens.PLACEHOLDER
MOST = 10_000  # characters; an encoder reads a few hundred
MOST_BYTES = 10_000_000  # of a text file
# Control characters but for white space, and surrogates: no tokenizer, font or terminal uses them.
STRANGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# What other programs read in a prompt, and neither Stable Diffusion nor diffusers do.
FOREIGN = re.compile(
    r"""
      \([^()]* : \s* [-+]?[\d.]+ \s* \)              # (word:1.3), a weight
    | \(\([^()]*\)\)                                # ((word))
    | (?:\w{2,} | [)}]) (?:\+\+|--)+ (?=\s|,|$)    # word++
    | \{[^{}]* \| [^{}]*\}                          # {red|blue}, a choice
    | \[[^\[\]]* [:|] [^\[\]]*\]                   # [red:blue:0.5], a change on the way
    | <(?:lora|lyco|hypernet):[^<>]*>               # <lora:name:0.8>, an adapter
    | \b__[\w/-]+__\b                               # __colour__, a wildcard
    | (?<=[a-z)}\],.]\s) (?:BREAK|AND) (?=\s)       # red BREAK blue
    """,
    re.VERBOSE,
)


def short(class_word: str) -> str:
    """What captions and folders call a subject: "yellow mug" of "yellow mug with purple dots"."""
    return class_word.split(" with ")[0]


def require_slot(where: str, prompt: str) -> None:
    """Checks one prompt; `where` says in the message where it stands.

    Raises UserError if it has no {}, holds control characters, or is too long.
    """
    require_text(where, prompt)
    has_slot = any(slot in prompt for slot in SLOTS)
    require(has_slot, f"{where}: no {{}} in {shown(prompt)}; write it where the subject goes")


def require_no_subject(where: str, prompt: str) -> None:
    """Checks a prompt of the class, whose {} is the class word; `where` says where it stands.

    Raises UserError if it names the subject, holds control characters, or is too long.
    """
    require_text(where, prompt)
    names_it = "<new1>" in prompt.lower()
    require(not names_it, f"{where} {shown(prompt)}: shows no subject; {{}} is the class word")


def read_prompts(
    path: str | Path, check: Callable[[str, str], None] = require_slot
) -> tuple[str, ...]:
    """The prompts of a text file, one a line; empty lines and # comments are skipped.

    check: of each prompt, told where it stands. Raises UserError if the file cannot be read or
    holds no prompt, and what `check` raises.
    """
    remedy = "name a text file, a line a prompt"
    try:
        text = read_text(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the prompts in {path} ({error}): {remedy}") from None

    prompts = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            prompts.append((number, line))

    require(prompts, f"no prompts in {path}: write a line a prompt, with {{}} for the subject")
    for number, prompt in prompts:
        check(f"{path}, line {number}", prompt)

    return tuple(prompt for _, prompt in prompts)


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises OSError if it cannot be read, and ValueError if it is no text or may not end: a pipe, a
    device, a file of more than MOST_BYTES.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("it is no regular file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has over {MOST_BYTES:,} bytes")
    return path.read_text(encoding="utf-8-sig")


def places_of(names: Sequence[str]) -> dict[str, int]:
    """What a prompt may write in braces for each of several concepts of these names -> its number.

    That is its number, from 1, and its name if no other has that too.
    """
    places = {str(number): number for number in range(1, len(names) + 1)}
    counts = Counter(names)
    own = {name: n for n, name in enumerate(names, start=1) if name and counts[name] == 1}
    return {**own, **places}


def require_places(where: str, prompt: str, names: Sequence[str]) -> None:
    """Checks a prompt for several concepts of these names, as `require_slot` does for one.

    Raises UserError if it names none of them, or if something in braces is none.
    """
    require_text(where, prompt)
    known = places_of(names)
    hint = f"write {' or '.join(f'{{{place}}}' for place in known)}"
    found = re.findall(r"\{([^{}]*)\}", prompt)
    require(found, f"{where}: none of the {len(names)} concepts in {shown(prompt)}; {hint}")

    strange = [place for place in found if place not in known]
    message = f"{where}: {{{(strange or [''])[0]}}} is none of the {len(names)} concepts; {hint}"
    require(not strange, message)


def require_text(where: str, prompt: str) -> None:
    """Checks a prompt that may do without the subject, such as a negative one.

    Raises UserError if it holds control characters, or is too long.
    """
    strange = STRANGE.search(prompt)
    if strange:
        character = f"U+{ord(strange.group()):04X} at character {strange.start() + 1}"
        raise UserError(f"{where}: {character} is no text; take it out of the prompt")

    size = f"{len(prompt)} characters, the most are {MOST}"
    require(len(prompt) <= MOST, f"{where}: {size}; shorten {shown(prompt)}")


def foreign_syntax(prompt: str) -> list[str]:
    """The parts of a prompt that mean something in other programs, and are plain text here."""
    return [found.group() for found in FOREIGN.finditer(prompt)]


def shown(prompt: str, most: int = 80) -> str:
    """The prompt in quotes for a message, cut after `most` characters."""
    return repr(prompt if len(prompt) <= most else f"{prompt[:most]}...")
