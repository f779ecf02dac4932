"""Text that strangers wrote, made safe to show: on a terminal, in a card, in HTML.

A photo's name, a concept's class word or a library's error may hold commands to the terminal,
marks that turn the reading direction, or Markdown and HTML of their own.
"""

import html
import logging
import re
import sys
import unicodedata
from typing import Literal

Form = Literal["terminal", "markdown", "code", "html"]

# Control characters, invisible ones (marks of reading direction too), halves of characters.
INVISIBLE = ("Cc", "Cf", "Cs")
JOINERS = "\u200c\u200d"  # scripts and emoji need these two
MARKDOWN = re.compile(r"([\\`*\[\]<>#|!~&])|(?<=www)(\.)|(:)(?=//)")
CODE = re.compile(r"[\\`\"$|<>]")  # what ends a code span, a string or a cell, or is run by a shell


def clean(text: object, form: Form = "terminal") -> str:
    """The text on one line, with "?" for each character that is a command or cannot be seen.

    form: what it goes into. "markdown" and "html" escape what would be read as markup. In "code",
    which has no escapes, what would end it becomes "?" too.
    """
    line = " ".join(str(text).splitlines())
    line = "".join("?" if _is_hidden(character) else character for character in line)

    if form == "markdown":
        return MARKDOWN.sub(lambda found: f"\\{found.group()}", line)
    if form == "code":
        return CODE.sub("?", line)
    return html.escape(line) if form == "html" else line


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in INVISIBLE and character not in JOINERS


def say(text: object) -> None:
    """Prints one line to standard output, cleaned."""
    print(clean(text), flush=True)


class OneLine(logging.Formatter):
    """LEVEL: message, cleaned."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return clean(super().formatMessage(record))


def start_logging(level: int = logging.WARNING) -> None:
    """Sends warnings to standard error, each on one cleaned line.

    Where a program has handlers of its own, they stay.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    logging.basicConfig(level=level, handlers=[handler])
