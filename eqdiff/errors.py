"""A user's mistakes, and how an entry script ends on one: one line `error: ...`, exit status 2."""

import contextlib
import errno
import functools
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from eqdiff.process.launched import hand_over, watch_launcher
from eqdiff.process.streams import print_last, unfailing_streams
from eqdiff.wording import clean

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNUSABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.EIO,
    errno.ENOENT,
    errno.ESTALE,
    errno.EBUSY,
)
# what libraries say when there is no memory, in errors that have no type of their own
NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "cannot allocate memory",
    "can't allocate memory",
    "insufficient memory",
    "failed to allocate",
    "bad_alloc",
    "could not create a primitive",  # oneDNN
    "could not create a memory object",
    "alloc_failed",  # cuBLAS, cuDNN
    "can't start new thread",
    "failed to map segment",  # the loader, of a library
    "error return without exception set",  # Python, which could not make the exception
    "without setting an exception",
)
SET_UTF8 = "this system's locale is not UTF-8: set PYTHONUTF8=1"
CLOSE_OTHERS = "close other programs, or take a machine with more memory"
LONGEST_REASON = 200  # characters of a library's error that a message quotes
P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """Something the user got wrong. The message says what, where, and what to do.

    It is shown as one line `error: ...`, and the script exits with status 2.
    """

    def __str__(self) -> str:
        return clean(super().__str__())


def require(condition: object, message: str) -> None:
    """Raises UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def reason_of(error: object, longest: int = LONGEST_REASON) -> str:
    """A library's error as a part of one line, cut to `longest` characters."""
    return " ".join(str(error).split())[:longest]


def main_guard(main: Callable[P, R]) -> Callable[P, R]:
    """Decorator of an entry script's main: it ends with one line instead of a traceback.

    UserError, a full disk and too little memory give `error: ...` and exit status 2, an interrupt
    gives status 130. Standard output and error do not fail meanwhile, whoever stops listening.
    Under `launch`, each rank passes its message to the launcher, which prints it once.
    """

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        watch_launcher()
        with unfailing_streams(), _noted_interrupts() as interrupts:
            try:
                return main(*args, **kwargs)
            except UserError as error:
                message = str(error)
            except KeyboardInterrupt:
                sys.exit(130)
            except Exception as error:
                if interrupts:  # a library made another error of it
                    sys.exit(130)
                message = _of_the_system(error)
                if message is None and hand_over(traceback.format_exc().rstrip()):
                    sys.exit(1)
                if message is None:
                    raise

            if not hand_over(f"error: {message}"):
                print_last(f"error: {message}")
            sys.exit(2)

    return guarded


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """The interrupts within the block so far. Each raises KeyboardInterrupt, as Python does."""
    interrupts: list[int] = []

    def note(number: int, frame: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupts
        return

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _of_the_system(error: Exception) -> str | None:
    """The message for an error that disk, memory or locale caused. None: it had another cause."""
    if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":
        character = error.object[error.start : error.start + 1]
        return f"a name with {character!r} cannot be written; {SET_UTF8}"
    return _of_the_disk(error) or _of_the_memory(error)


def _of_the_disk(error: Exception) -> str | None:
    """The message for an error that the disk or a file name caused. None: it had another cause."""
    if not isinstance(error, OSError) or error.errno not in (*FULL, *UNUSABLE):
        return None
    if error.errno in FULL:
        target = error.filename or "the results"
        return f"the disk is full, writing {target}: free some space and run again"
    if error.filename is None:
        return None
    name = str(error.filename)[:200]
    return f"{name}: {error.strerror}; see to that file or folder, or name another"


def lacks_memory(error: BaseException) -> bool:
    """Whether too little memory was the cause of an error, on the CPU or on a GPU."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    if isinstance(error, Exception) and any(words in text for words in NO_MEMORY):
        return True
    return error.__cause__ is not None and lacks_memory(error.__cause__)


def _of_the_memory(error: Exception, remedy: str = CLOSE_OTHERS) -> str | None:
    """The message for an error that too little memory caused. None: it had another cause."""
    if not lacks_memory(error):
        return None
    reason = reason_of(error, 80).split(". ")[0] or "no more to be had"
    if "DefaultCPUAllocator" in str(error):
        reason = "no more to be had on the CPU"
    return f"out of memory ({reason}); what helps: {remedy}"


@contextlib.contextmanager
def memory_guard(remedy: str) -> Iterator[None]:
    """Raises UserError that names a remedy, in place of whatever too little memory raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = _of_the_memory(error, remedy)
        if message is None:
            raise
        raise UserError(message) from None
