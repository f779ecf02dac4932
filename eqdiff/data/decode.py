"""A picture's file -> its pixels as they are stored, within a bound of memory.

What decoding takes is estimated from the header, and refused before it begins. The pixels are
handed on as strips, so that nothing after it needs all of them in another form.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from eqdiff.errors import UserError

# (top, bottom) -> these rows of the picture
Rows = Callable[[int, int], Image.Image]
MOST_BYTES = 1_500_000_000  # that reading one picture takes
STRIP = 4_000_000  # pixels that are worked on at a time
# Bytes a pixel, while it is decoded: measured with Pillow 13, OpenCV 5.
WEBP_BY_PILLOW = 16.1
WEBP_BY_OPENCV = 8.1
AVIF_BY_PLANES = 1.35  # bytes for each byte of its planes, of brightness, colours and alpha
AVIF_HEAD = 4096  # bytes in which it says how its planes are packed
HELD = {"1": 1, "L": 1, "P": 1}  # in memory; other modes of 8 bits take 4
LARGE_WEBP = 60_000_000  # pixels from which OpenCV decodes it
TIFF_ROWS, TIFF_BITS, TIFF_SAMPLES, TIFF_TILE = 278, 258, 277, (322, 323)
JPEG_SCALES = (1, 2, 4, 8)  # by which a JPEG can be read smaller
LONGEST_JPEG = 100_000_000  # bytes that are read at once
ZEROS = 16  # bytes in a row that no JPEG ends in
# What is put after the last byte of a JPEG without an end mark. Whatever is missing is decoded from
# it, so two of them make two pictures if anything is.
END_MARK = b"\xff\xd9"
NOISE = bytes([0xB6, 0x5A, 0xC3, 0x91, 0x6D, 0xE2, 0x37, 0x8F]) * 64


def require_room(file: Image.Image, path: Path, factor: int, kept: int) -> None:
    """Checks from the header what reading a picture takes.

    factor: see `decode`. kept: bytes of what is made of the pixels.
    Raises UserError if it is too much.
    """
    decoding, held = _cost(file, path, factor)
    need = max(decoding, held + kept)
    if need > MOST_BYTES:
        size = f"{file.width} x {file.height} pixels"
        raise UserError(
            f"{path}: {size} as {file.format} would take {need / 1e9:.1f} GB to read, more than "
            f"{MOST_BYTES / 1e9:.1f}; save it smaller"
        )


def decode(file: Image.Image, path: Path, factor: int) -> tuple[Rows, tuple[int, int]]:
    """Reads the pixels of an open picture: its rows, and width and height of what was read.

    factor: by which the picture will be reduced. A JPEG is read smaller by that or less.
    Raises OSError and other errors of Pillow if the file is damaged.
    """
    if _is_large_webp(file):
        return _webp(path)

    needed = (max(1, file.width // factor), max(1, file.height // factor))
    file.draft(None, needed)
    try:
        file.load()
        is_torn = _ends_in_zeros(path)
    except OSError:
        is_torn = True
        if not _is_jpeg(file) or path.stat().st_size > LONGEST_JPEG:
            raise

    if is_torn and _is_jpeg(file):
        file = _without_end_mark(path, needed)
    return _rows_of(file), file.size


def strips(size: tuple[int, int], multiple: int = 1) -> list[tuple[int, int]]:
    """(top, bottom) of strips that make up a picture; each but the last a `multiple` high."""
    width, height = size
    step = max(1, STRIP // (width * multiple)) * multiple
    return [(top, min(top + step, height)) for top in range(0, height, step)]


def _rows_of(picture: Image.Image) -> Rows:
    return lambda top, bottom: picture.crop((0, top, picture.width, bottom))


# -- what it takes ---------------------------------------------------------------------------------


def _cost(file: Image.Image, path: Path, factor: int) -> tuple[float, float]:
    """Bytes that decoding takes at its peak, and bytes of the pixels that it leaves."""
    pixels = file.width * file.height
    held = pixels * (2 if file.mode.startswith("I;16") else HELD.get(file.mode, 4))
    if _is_jpeg(file):
        # if it is progressive, all coefficients are held: 2 bytes for each sample
        scale = max(scale for scale in JPEG_SCALES if scale <= factor)
        return held / scale**2 + 2 * len(file.getbands()) * pixels, held / scale**2

    if file.format == "WEBP":
        return (WEBP_BY_OPENCV if _is_large_webp(file) else WEBP_BY_PILLOW) * pixels, held
    if file.format in ("AVIF", "HEIF"):
        # the planes, and the pixels once as bytes and once as a picture
        packed = AVIF_BY_PLANES * _planes(file, path)
        return (packed + len(file.getbands()) + 4.3) * pixels, held
    if isinstance(file, TiffImageFile):
        return held + _strip_of_tiff(file), held
    return held, held


def _planes(file: Image.Image, path: Path) -> float:
    """Bytes a pixel of the planes of an AVIF; the most there can be of a HEIC."""
    alpha = "A" in file.getbands()
    with path.open("rb") as stream:
        _, box, configuration = stream.read(AVIF_HEAD).partition(b"av1C")
    if not box or len(configuration) < 3:
        return 2 * (3 + alpha)

    flags = configuration[2]
    is_deep = flags & 0b0100_0000
    is_subsampled = flags & 0b0000_1100 == 0b0000_1100
    return ((1.5 if is_subsampled else 3) + alpha) * (2 if is_deep else 1)


def _strip_of_tiff(file: TiffImageFile) -> int:
    """Bytes of the strip or tile that libtiff unpacks at once; 0 if nothing is compressed."""
    if all(tile[0] == "raw" for tile in file.tile):
        return 0

    tags = file.tag_v2
    bits = max(tags.get(TIFF_BITS, (1,))) * tags.get(TIFF_SAMPLES, 1)
    width = file.width
    height = min(tags.get(TIFF_ROWS, file.height), file.height)
    if TIFF_TILE[0] in tags:
        width, height = (tags[tag] for tag in TIFF_TILE)
    return width * height * bits // 8


# -- other decoders than Pillow's ------------------------------------------------------------------


def _is_large_webp(file: Image.Image) -> bool:
    """Whether OpenCV is to decode it, which takes half of what Pillow does."""
    large = file.width * file.height >= LARGE_WEBP
    return large and file.format == "WEBP" and not file.is_animated


def _webp(path: Path) -> tuple[Rows, tuple[int, int]]:
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        pixels = None
    if pixels is None:
        raise OSError("damaged WebP")

    has_alpha = pixels.shape[2] == 4
    to_rgb = cv2.COLOR_BGRA2RGBA if has_alpha else cv2.COLOR_BGR2RGB

    def rows(top: int, bottom: int) -> Image.Image:
        return Image.fromarray(cv2.cvtColor(pixels[top:bottom], to_rgb))

    return rows, (pixels.shape[1], pixels.shape[0])


def _is_jpeg(file: Image.Image) -> bool:
    return file.format in ("JPEG", "MPO")


def _ends_in_zeros(path: Path) -> bool:
    """Whether a file may be half a download: its space is taken, and was not filled.

    A JPEG decoder would take the zeros for pixels. Of a very long file it is not known.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - ZEROS))
        return size <= LONGEST_JPEG and not any(file.read())


def _without_end_mark(path: Path, size: tuple[int, int]) -> Image.Image:
    """A JPEG that lacks its end mark and nothing else. size: see `Image.draft`.

    Raises OSError if pixels are missing too.
    """
    data = path.read_bytes()
    data = (data.rstrip(b"\0") if data.endswith(bytes(ZEROS)) else data).rstrip(b"\xff")
    digests = set()
    for end in (NOISE + END_MARK, END_MARK):
        picture = JpegImageFile(io.BytesIO(data + end))
        picture.draft(None, size)
        picture.load()
        digests.add(_digest(picture))

    if len(digests) > 1:
        raise OSError("image file is truncated")
    return picture


def _digest(picture: Image.Image) -> bytes:
    rows = _rows_of(picture)
    digest = hashlib.sha256()
    for top, bottom in strips(picture.size):
        digest.update(rows(top, bottom).tobytes())
    return digest.digest()
