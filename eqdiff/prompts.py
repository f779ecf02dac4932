"""Prompts: where the subject goes in one, what none may hold, and files of them."""

import re
from pathlib import Path

from eqdiff.options import UserError, require

SLOTS = ("{}", "<new1>")  # what a prompt may write for the subject; the second is tokens.PLACEHOLDER
MOST = 10_000  # characters; an encoder reads a few hundred
# control characters, white space apart, and halves of characters: no tokenizer, font or terminal has a use for them
STRANGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The prompts of a file: a line each, # comments skipped. UserError: unreadable file, no prompt, one without {}."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the prompts in {path} ({error}): name a text file, a line a prompt") from None
    prompts = {number: line for number, line in enumerate(lines, start=1) if line and not line.startswith("#")}
    require(prompts, f"no prompts in {path}: write a line a prompt, with {{}} for the subject")
    for number, prompt in prompts.items():
        require_slot(f"{path}, line {number}", prompt)
    return tuple(prompts.values())


def require_slot(where: str, prompt: str) -> None:
    """UserError, naming `where`, if the prompt has no place for the subject, or is no text to draw from."""
    strange = STRANGE.search(prompt)
    if strange:
        code = f"U+{ord(strange.group()):04X}"
        raise UserError(f"{where}: {code} at character {strange.start() + 1} is no text; take it out of the prompt")
    require(len(prompt) <= MOST, f"{where}: {len(prompt)} characters, the most are {MOST}; shorten {shown(prompt)}")
    found = any(slot in prompt for slot in SLOTS)
    require(found, f"{where}: no {{}} in {shown(prompt)}; write it where the subject goes")


def shown(prompt: str, most: int = 80) -> str:
    """A prompt in quotes, as a message names it."""
    return repr(prompt if len(prompt) <= most else f"{prompt[:most]}...")
