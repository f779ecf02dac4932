"""Prompts: where the subject goes in one, and files of them."""

from pathlib import Path

from eqdiff.options import UserError, require

SLOTS = ("{}", "<new1>")  # what a prompt may write for the subject; the second is tokens.PLACEHOLDER


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The prompts of a file: a line each, # comments skipped. UserError: unreadable file, no prompt, one without {}."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts in {path} ({error}): name a text file, a line a prompt") from None
    prompts = {number: line for number, line in enumerate(lines, start=1) if line and not line.startswith("#")}
    require(prompts, f"no prompts in {path}: write a line a prompt, with {{}} for the subject")
    for number, prompt in prompts.items():
        require_slot(f"{path}, line {number}", prompt)
    return tuple(prompts.values())


def require_slot(where: str, prompt: str) -> None:
    """UserError, naming `where`, if the prompt has no place for the subject."""
    found = any(slot in prompt for slot in SLOTS)
    require(found, f"{where}: no {{}} in {prompt!r}; write it where the subject goes")
