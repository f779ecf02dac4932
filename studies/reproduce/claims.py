"""Claims: who of several processes and machines has a cell, or may write the file of all rows.

A claim is a file that is created exclusively and refreshed by its holder (filelock's
SoftFileLease). It needs no locks of the disk. That of a dead or silent holder is taken over.

A process that is killed between creating the file and writing its name into it leaves it empty.
filelock takes that for the claim of an old version that is still held, and waits for ever. Nothing
else writes into our folder, so here an empty claim that stays so is removed.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, SoftFileLease, Timeout

LEASE = 60.0  # seconds that a claim stands without a sign of its holder
TORN = 5.0  # seconds that it may be empty, as it is between two calls of the system


class Claims:
    """The claims in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._leases: dict[str, SoftFileLease] = {}
        # name -> the empty file that was seen, and when it was seen first [s]
        self._empty: dict[str, tuple[tuple[int, int], float]] = {}

    def claimed(self, name: str) -> AbstractContextManager[bool]:
        """Whether `name` is this process's own within the block; False if another has it."""
        self._remove_torn(name)
        return _taken(self._lease(name))

    @contextmanager
    def in_turn(self, name: str) -> Iterator[None]:
        """A block that one process at a time may be in; the others wait."""
        lease = self._lease(name)
        while not lease.is_locked:
            self._remove_torn(name)
            with suppress(Timeout):
                lease.acquire(timeout=TORN)
        try:
            yield
        finally:
            lease.release()

    def _lease(self, name: str) -> SoftFileLease:
        """The claim of that name; always the same object, which remembers how old others' are."""
        if name not in self._leases:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._leases[name] = SoftFileLease(self._file(name), lease_duration=LEASE)
        return self._leases[name]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def _remove_torn(self, name: str) -> None:
        """Removes a claim that has been seen empty for TORN seconds.

        Two processes that do so at once may both get it. Their cell is then run twice, which costs
        time alone.
        """
        file = self._file(name)
        try:
            state = file.stat()
        except OSError:
            return

        now = time.monotonic()
        mark = (state.st_ino, state.st_mtime_ns)
        seen, since = self._empty.get(name, (None, now))
        if state.st_size or seen != mark:
            self._empty[name] = (mark, now)
        elif now - since >= TORN:
            file.unlink(missing_ok=True)


@contextmanager
def _taken(lock: BaseFileLock) -> Iterator[bool]:
    """Whether a lock is ours within the block; False at once if another has it."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return

    try:
        yield True
    finally:
        with suppress(OSError):  # the disk may be gone: the work within is not to fail by that
            lock.release()
