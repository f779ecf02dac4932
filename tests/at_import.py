"""Runs a script as the shell does, and sends it a signal when it begins to import a module.

    python tests/at_import.py MODULE SIGNAL SCRIPT [WORD ...]

It imports nothing that the script imports.
"""

import os
import runpy
import signal
import sys
from importlib.abc import MetaPathFinder


class AtImport(MetaPathFinder):
    """Sends this process a signal as soon as a module is looked for."""

    def __init__(self, module: str, number: int) -> None:
        self.module = module
        self.number = number

    def find_spec(self, module: str, *_: object) -> None:
        if module == self.module:
            self.module = ""
            os.kill(os.getpid(), self.number)


if __name__ == "__main__":
    _, module, name, *words = sys.argv
    sys.meta_path.insert(0, AtImport(module, signal.Signals[name]))
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
