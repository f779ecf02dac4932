"""The one atomic write: a file that others see is whole, or it is not there."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from eqdiff.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

UMASK = os.umask(0)
os.umask(UMASK)  # it cannot be read without being set


@contextmanager
def replacing(path: Path, *, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block succeeds.

    Folders above it are made. Whatever library writes the file, the umask decides who may read it.

    durable: the file is on the disk before it takes the place. shared: other processes may write
    the same file at the same time (a cache), also from another machine, so the temporary name is
    this process's own. Otherwise the next run uses the same name, and so writes over what a kill
    has left.

    Raises UserError if it cannot be written.
    """
    own = f".{os.getpid()}-{secrets.token_hex(4)}" if shared else ""
    beside = path.with_name(f".{path.name}{own}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside

        beside.chmod(0o666 & ~UMASK)
        if durable:
            sync(beside)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: cannot be written ({reason}); free some space or write somewhere else"
        ) from None
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_tensors(
    path: Path,
    tensors: "dict[str, Tensor]",
    metadata: dict[str, str],
    check: Callable[[Path], Any] = lambda _: None,
) -> None:
    """Writes a safetensors file. Tensors may share memory, and lie in it in any order.

    check: reads the file before it takes its place.

    Raises UserError if it cannot be written, or if `check` raises one: the file is then not there.
    """
    from safetensors.torch import save_file  # heavy: it imports torch

    with replacing(path, durable=True) as beside:
        save_file(storable(tensors), beside, metadata)
        try:
            check(beside)
        except UserError as error:
            raise UserError(
                f"{path}: not written, it would be refused when it is read ({error})"
            ) from None


def storable(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The same values as safetensors takes them: contiguous, and no two in the same memory."""
    places: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in places else tensor
        apart[name] = apart[name].contiguous()
        places.add(place)
    return apart


def move(source: Path, target: Path) -> None:
    """Moves a file, also to another disk (a linked folder), and replaces one that is there.

    Others see the one that was there, or the whole new one.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(target, durable=True) as beside:
            shutil.copyfile(source, beside)
        source.unlink()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
