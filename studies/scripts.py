"""Root scripts as functions. Nothing imports one: it is run as the shell would run it."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_script(name: str, words: Sequence[str]) -> None:
    """Runs a script of the repository in this process, by its name from the root."""
    before = sys.argv
    sys.argv = [name, *words]
    try:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    finally:
        sys.argv = before
