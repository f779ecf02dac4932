"""Imported by the root scripts before all else: Ctrl-C shows no traceback at any moment.

While the other modules are imported, and while Python ends, no code of ours could catch it. The
process then ends by SIGINT itself, as one that never heard of the signal.
"""

import sys
from types import TracebackType
from typing import Any

_show_uncaught = sys.excepthook
_show_ignored = sys.unraisablehook


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _show_uncaught(kind, error, trace)


def _ignored(event: Any) -> None:
    """Shows an error that Python ignores, in a destructor say, unless a signal was its cause."""
    if not issubclass(event.exc_type, KeyboardInterrupt | SystemExit):
        _show_ignored(event)


sys.excepthook = _uncaught
sys.unraisablehook = _ignored
