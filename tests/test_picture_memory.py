"""Memory that reading a picture and its mask takes, in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import environment, long_after
from icc import cmyk_profile
from PIL import Image

from eqdiff.data import pictures

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the peak is read as Linux tells it"
)
WHITE_ABOVE = (255, 255, 255, 255)
RED_BELOW = (90, 20, 20, 255)
MOST = 1.5e9  # bytes, beyond the libraries
STRIPS = 110e6  # bytes of the strips that are worked on, whatever the picture's size

# Reads a file as a photo and as that photo's mask, and says what that took at its peak [bytes].
READER = """
import re, sys
from pathlib import Path
from eqdiff.data.folder import load_mask, load_photo
from eqdiff.errors import UserError
import numpy, cv2, PIL.Image
PIL.Image.init()
from PIL import ImageCms
ImageCms.createProfile("sRGB")
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
path, enough = Path(sys.argv[1]), int(sys.argv[2])
try:
    photo = load_photo(path, enough=enough)
    mask = load_mask(path, photo)
    assert photo.image.size == mask.size
    print(f'{{"peak": {peak() - before}, "pixels": {photo.size[0] * photo.size[1]}}}')
except UserError as error:
    print(f'{{"peak": {peak() - before}, "refused": "{error}"}}')
"""


def picture(side: int, mode: str) -> Image.Image:
    """Light above and dark below, transparent there if it can be; a mask of its upper half."""
    image = Image.new("RGBA", (side, side), RED_BELOW)
    image.paste(WHITE_ABOVE, (0, 0, side, side // 2))
    if mode in ("RGBA", "LA"):
        image.paste((*RED_BELOW[:3], 100), (0, side // 2, side, side))
    return image.convert(mode)


def deep(side: int, dtype: str, white: float) -> Image.Image:
    samples = np.zeros((side, side), dtype)
    samples[: side // 2] = white
    return Image.fromarray(samples)


def thin(side: int) -> Image.Image:
    """As many pixels, nearly as thin as may be."""
    width = int(side / 1900**0.5)
    image = Image.new("L", (width, side * side // width), 255)
    return image.convert("RGB")


def saves(
    make: Callable[[int], Image.Image], container: str, **how: object
) -> Callable[[int, Path], None]:
    return lambda side, path: make(side).save(path, container, **how)


def of_mode(mode: str) -> Callable[[int], Image.Image]:
    return lambda side: picture(side, mode)


class Kind(NamedTuple):
    """write: writes a picture of side x side pixels. bytes_a_pixel: that reading it may take."""

    write: Callable[[int, Path], None]
    bytes_a_pixel: float


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 6
    return exif


ONE_STRIP = {"compression": "tiff_adobe_deflate", "tiffinfo": {278: 10**6}}
KINDS = {
    "PNG with alpha": Kind(saves(of_mode("RGBA"), "PNG", compress_level=1), 6.5),
    "PNG of colours": Kind(saves(of_mode("RGB"), "PNG", compress_level=1), 5.5),
    "PNG of 16 bits": Kind(saves(lambda n: deep(n, "u2", 65535), "PNG", compress_level=1), 5.5),
    "PNG with a palette": Kind(saves(of_mode("P"), "PNG", compress_level=1), 4.5),
    "PNG, thin": Kind(saves(thin, "PNG", compress_level=1), 9.5),
    "JPEG": Kind(saves(of_mode("RGB"), "JPEG", subsampling=0), 5.5),
    "JPEG, progressive": Kind(saves(of_mode("RGB"), "JPEG", subsampling=0, progressive=True), 10.2),
    "JPEG of greys": Kind(saves(of_mode("L"), "JPEG", progressive=True), 4.5),
    "TIFF in one strip": Kind(saves(of_mode("RGBA"), "TIFF", **ONE_STRIP), 8.5),
    "TIFF, turned": Kind(saves(of_mode("RGB"), "TIFF", compression="tiff_lzw", exif=turned()), 8.5),
    "TIFF of floats": Kind(saves(lambda n: deep(n, "f4", 1), "TIFF"), 6.5),
    "TIFF of inks": Kind(saves(of_mode("CMYK"), "TIFF", icc_profile=cmyk_profile("x")), 6.5),
    "GIF": Kind(saves(of_mode("P"), "GIF"), 4.5),
    "BMP": Kind(saves(of_mode("RGB"), "BMP"), 5.5),
    "WebP": Kind(saves(of_mode("RGB"), "WEBP", quality=60, method=0), 16.5),
    "WebP with alpha": Kind(
        saves(of_mode("RGBA"), "WEBP", lossless=True, method=0, quality=0), 16.5
    ),
    "AVIF": Kind(saves(of_mode("RGB"), "AVIF", speed=10), 9.6),
}


def measured(path: Path, enough: int = 1024) -> dict:
    command = [sys.executable, "-c", READER, str(path), str(enough)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=570)
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    return json.loads(run.stdout)


def skip_if_unknown(name: str) -> None:
    if name == "AVIF" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    long_after(2, ["PNG of 16 bits", "JPEG, progressive", "PNG with alpha", "TIFF, turned"]),
)
def test_a_picture_and_its_mask_take_so_many_bytes_a_pixel(name: str, tmp_path: Path) -> None:
    skip_if_unknown(name)
    KINDS[name].write(4500, tmp_path / "photo.bin")
    found = measured(tmp_path / "photo.bin")
    assert found["peak"] <= KINDS[name].bytes_a_pixel * found["pixels"] + STRIPS, (
        found["peak"] / found["pixels"]
    )


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_a_picture_of_nearly_150_million_pixels_takes_no_more_than_1500_million_bytes(
    name: str, tmp_path: Path
) -> None:
    skip_if_unknown(name)
    KINDS[name].write(12_200, tmp_path / "photo.bin")
    found = measured(tmp_path / "photo.bin")
    assert "refused" not in found
    assert (
        found["peak"] <= MOST
        and found["peak"] <= KINDS[name].bytes_a_pixel * found["pixels"] + STRIPS
    )
    (tmp_path / "photo.bin").unlink()
