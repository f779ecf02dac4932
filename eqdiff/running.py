"""A run among others: the lock on its output folder, and the signals that ask it to stop."""

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqdiff.config import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

LOG = logging.getLogger(__name__)
RESUME = "--resume_from_checkpoint latest"
LOCK = ".lock"
SECOND = 1.0  # seconds; a launcher may pass on a signal that the process has got already


class FolderTaken(UserError):
    """Another process has the lock."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone; the kernel takes the lock back however the process ends.

    FolderTaken: another run has it; UserError: it cannot be written. A folder that is still empty in the end and was
    made here goes again.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _take(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --output_dir") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()
        if made:
            with contextlib.suppress(OSError):  # it holds results
                folder.rmdir()


def _take(folder: Path) -> Any:
    """The open lock file. One whose name is gone or another's by now was let go by a run that just ended: again."""
    while True:
        file = (folder / LOCK).open("a")
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):  # not every network disk has locks
                LOG.warning("%s cannot be locked (%s): start no other training there", folder, error.strerror)
                return file
            file.close()
            raise FolderTaken(
                f"{folder}: another training writes there now; wait until it ends, or give another --output_dir"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                return file
        file.close()


def say_stopped(number: int, where: str = "") -> None:
    """The last line of a run that a signal ends."""
    print(f"stopped by {signal.Signals(number).name}{where}", file=sys.stderr)


class Laps:
    """Where the time goes: seconds by part, each from the end of the one before."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.last = time.monotonic()

    def __call__(self, part: str) -> None:
        now = time.monotonic()
        self.parts[part], self.last = self.parts.get(part, 0.0) + now - self.last, now

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items())


class Signals(AbstractContextManager):
    """SIGINT and SIGTERM leave at once with status 128 + number; after `defer` the first one is only noted.

    received: the number of the signal noted, 0 for none.
    """

    def __init__(self) -> None:
        self.received, self.deferred, self.when, self.group = 0, False, 0.0, None
        self.former: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # others cannot have signals
            self.former = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.deferred and not self.received:
            self.received, self.when = number, time.monotonic()
        elif not self.deferred or time.monotonic() - self.when > SECOND:
            print(file=sys.stderr)  # below a progress bar
            say_stopped(number)
            sys.exit(128 + number)

    def defer(self, accelerator: "Accelerator") -> None:
        """From now on a signal waits for the end of the step. Called by all processes together."""
        if accelerator.num_processes > 1:
            import torch.distributed as dist

            self.group = dist.new_group(backend="gloo")  # on the CPU: asking it does not wait for a GPU's queue
        self.deferred = True

    def agreed(self) -> int:
        """The signal to stop for, the same in all processes at the same step, whichever of them got it; 0: none."""
        if self.group is None:
            return self.received
        import torch
        import torch.distributed as dist

        found = torch.tensor(self.received)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def stop(self, number: int) -> None:
        """Leaves with the status of this signal. All is saved: a second one cannot hurry it any more."""
        for each in self.former:
            signal.signal(each, signal.SIG_IGN)
        self.former = {}
        sys.exit(128 + number)
