"""Where a page's pictures are: in the page itself, or in a folder beside it.

They are drawn anew from their pixels, so that no metadata of a photo (place, camera, owner) is
passed on.
"""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eqdiff.errors import UserError
from eqdiff.files import replacing
from eqdiff.ours import SOFTWARE, entries, is_picture, remove

LOSSLESS = 192  # pixels a side up to which a picture is a PNG; JPEG would blur the toybox's
QUALITY = 90  # of a JPEG


class Pictures(Protocol):
    """Takes the pictures of a page."""

    def put(self, image: Image.Image, name: str) -> str:
        """Takes a picture; `name` is unique and a file name's stem. Returns what `src` says."""


class Embedded:
    """Pictures in the page itself."""

    def put(self, image: Image.Image, name: str) -> str:
        data, suffix = encoded(image)
        kind = {"png": "png", "jpg": "jpeg"}[suffix]
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class Beside:
    """Pictures in a folder beside the page; `done` removes those of a former page."""

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        """Raises UserError if something that is not ours lies in the folder."""
        self.folder = folder
        self.names: set[str] = set()
        strange = [path for path in entries(folder) if path.is_dir() or not is_picture(path)]
        if folder.exists() and not folder.is_dir():
            strange = [folder]
        if strange and not overwrite:
            raise UserError(
                f"{strange[0]}: not written by EqDiff, so it stays; move it, name another page "
                "with --output, or add --overwrite"
            )

    def put(self, image: Image.Image, name: str) -> str:
        data, suffix = encoded(image)
        path = self.folder / f"{name}.{suffix}"
        with replacing(path) as beside:
            beside.write_bytes(data)
        self.names.add(path.name)
        return f"{self.folder.name}/{path.name}"

    def done(self) -> None:
        """Removes pictures of ours that this page does not show."""
        stale: Iterable[Path] = (p for p in entries(self.folder) if p.name not in self.names)
        for path in stale:
            if path.is_file() and is_picture(path):
                remove(path)


def encoded(image: Image.Image) -> tuple[bytes, str]:
    """A picture as the bytes of a file with our mark and nothing else, and the file's suffix."""
    pixels = Image.new("RGB", image.size)
    pixels.paste(image.convert("RGB"))
    file = io.BytesIO()
    if max(pixels.size) <= LOSSLESS:
        mark = PngInfo()
        mark.add_text("Software", SOFTWARE)
        pixels.save(file, format="PNG", pnginfo=mark, optimize=True)
        return file.getvalue(), "png"
    pixels.save(file, format="JPEG", quality=QUALITY, comment=SOFTWARE)
    return file.getvalue(), "jpg"
