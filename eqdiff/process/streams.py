"""Standard streams that cannot end a program: whoever listened may leave at any moment.

A pipe's reader ends (`train | head -1`), a terminal closes, the disk of a log file fills up, a
stream was closed from the start, or its encoding lacks a character. The work goes on all the same.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STANDARD = ("stdin", "stdout", "stderr")  # in the order of their file descriptors 0, 1, 2
# what a stream raises: no reader, a full disk, a closed file, a signal amid another write
FAILURES = (OSError, ValueError, RuntimeError)


def print_last(text: str) -> None:
    """Prints the last line of a process to standard error, in one write.

    Several processes of a training end at the same moment. The two writes that `print` makes where
    Python does not buffer (PYTHONUNBUFFERED) would mix their lines.
    """
    sys.stderr.write(f"{text}\n")


class Unfailing:
    """A text stream whose failures are not the program's: what cannot be written is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text. Characters that the encoding lacks are written as escapes."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            escaped = text.encode(encoding, "backslashreplace").decode(encoding)
            with suppress(*FAILURES):
                self._stream.write(escaped)
        except FAILURES:
            pass
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Passes on what was written, if somebody takes it."""
        with suppress(*FAILURES):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unfailing_streams() -> Iterator[None]:
    """Standard output and error do not fail within the block, nor when Python flushes them."""
    _open_closed()
    originals = {name: getattr(sys, name) for name in STANDARD[1:]}
    for name, stream in originals.items():
        setattr(sys, name, Unfailing(stream))

    try:
        yield
    finally:
        for name, stream in originals.items():
            setattr(sys, name, stream)
            _flush_or_silence(stream)


def _open_closed() -> None:
    """Gives a standard stream that was closed from the start (`>&-`) the null device.

    Its file descriptor would go to the next file that is opened, and get what libraries print.
    """
    for number, name in enumerate(STANDARD):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _flush_or_silence(stream: Any) -> None:
    """Flushes a stream. If it fails, the stream gets the null device.

    Otherwise Python flushes it again when it ends, and makes the exit status 120.
    """
    try:
        stream.flush()
    except FAILURES:
        with suppress(*FAILURES):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()
