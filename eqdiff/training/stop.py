"""A run among others: the lock on its output folder, and the time that its parts take."""

import contextlib
import errno
import logging
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from eqdiff.errors import UserError

LOG = logging.getLogger(__name__)
RESUME = "--resume_from_checkpoint latest"
LOCK = ".eqdiff.lock"
PATIENCE = 0.1  # seconds: a file that was removed while we opened it gets a second try
# what flock answers on a disk that has no locks
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class FolderTaken(UserError):
    """Another process has the lock."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder if need be, and keeps it for this process alone.

    The kernel releases the lock however the process ends, so a killed training blocks nobody. Some
    network disks have no locks: there a warning says so, and the training goes on without one. The
    lock's file is removed at the end, and so is a folder that was made here and is still empty.

    Raises FolderTaken if another process has the lock, and UserError if the folder cannot be
    written or a file of somebody's own has the lock's name.
    """
    made = not folder.exists()
    lock = FileLock(folder / LOCK, timeout=PATIENCE, fallback_to_soft=False)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_ours(folder / LOCK)
        _acquire(lock, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); give another --output_dir"
        ) from None

    try:
        yield
    finally:
        # before the release: filelock does not take a file that was removed in the meantime
        with contextlib.suppress(OSError):  # Windows keeps an open file, and filelock removes it
            (folder / LOCK).unlink()
        lock.release()

        if made:
            with contextlib.suppress(OSError):  # it holds results
                folder.rmdir()


def _require_ours(path: Path) -> None:
    """Raises UserError if something other than a lock's empty file has its name."""
    with contextlib.suppress(FileNotFoundError):
        there = path.lstat()  # once: a run that ends may remove it at any moment
        if not stat.S_ISREG(there.st_mode) or there.st_size:
            raise UserError(
                f"{path}: is not EqDiff's lock; move it away, or give another --output_dir"
            )


def _acquire(lock: FileLock, folder: Path) -> None:
    """Takes the lock, or warns where the disk has none.

    Raises FolderTaken if another process has it.
    """
    try:
        lock.acquire()
    except Timeout:
        raise FolderTaken(
            f"{folder}: another training writes there now; "
            "wait until it ends, or give another --output_dir"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        LOG.warning(
            "%s cannot be locked (%s): start no other training there", folder, error.strerror
        )


class Laps:
    """Measures a run's time by part [seconds]; each part ends where the next begins."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.last = time.monotonic()

    def __call__(self, part: str) -> None:
        """Adds the time since the last call to `part`."""
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.parts.items())
