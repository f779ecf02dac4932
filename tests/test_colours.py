"""Colours by value: profiles x modes x containers against LittleCMS's own answer, depths against
their answer in 8 bits."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from icc import (
    D50_XY,
    D65_XY,
    SRGB_NAME,
    SRGB_XY,
    cmyk_profile,
    grey_profile,
    rec709_curve,
    rgb_profile,
    srgb_curve,
)
from PIL import Image, ImageCms
from pixels import png, tiff

from eqdiff.data.folder import load_mask, load_photo
from eqdiff.errors import UserError

ADOBE = (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65_XY, 563 / 256)
# name -> space, profile, how far its colours are from sRGB's at least
PROFILES: dict[str, tuple[str, bytes, int]] = {
    "Display P3": (
        "RGB",
        rgb_profile("P3", ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), D65_XY, srgb_curve),
        20,
    ),
    "Adobe RGB": ("RGB", rgb_profile("Adobe RGB (1998)", *ADOBE), 20),
    "ProPhoto": (
        "RGB",
        rgb_profile(
            "ProPhoto", ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50_XY, 1.8
        ),
        20,
    ),
    "Rec. 2020": (
        "RGB",
        rgb_profile(
            "Rec2020", ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)), D65_XY, rec709_curve
        ),
        20,
    ),
    "linear": ("RGB", rgb_profile("linear", SRGB_XY, D65_XY, 1.0), 20),
    "red for green": (
        "RGB",
        rgb_profile("x", (SRGB_XY[1], SRGB_XY[0], SRGB_XY[2]), D65_XY, srgb_curve),
        20,
    ),
    "Adobe RGB called sRGB": ("RGB", rgb_profile(SRGB_NAME, *ADOBE), 20),
    "sRGB called Adobe RGB": (
        "RGB",
        rgb_profile("Adobe RGB (1998)", SRGB_XY, D65_XY, srgb_curve),
        0,
    ),
    "grey, linear": ("GRAY", grey_profile("Linear Grey", 1.0), 20),
    "grey 1.8": ("GRAY", grey_profile("Gray Gamma 1.8", 1.8), 10),
    "grey 2.2": ("GRAY", grey_profile("Gray Gamma 2.2", 2.2), 1),
    "grey 1.8 called sRGB": ("GRAY", grey_profile(SRGB_NAME, 1.8), 10),
    "inks": ("CMYK", cmyk_profile("Inks"), 20),
    "inks called sRGB": ("CMYK", cmyk_profile(SRGB_NAME), 20),
}
# mode of a file -> the spaces of profiles that fit
MODES = {
    "RGB": ("RGB",),
    "RGBA": ("RGB",),
    "P": ("RGB",),
    "L": ("GRAY",),
    "LA": ("GRAY",),
    "I;16": ("GRAY",),
    "CMYK": ("CMYK",),
}
SIZE = (48, 36)
CONTAINERS = {
    "PNG": {},
    "JPEG": {"quality": 95},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95},
}
PILLOW_HAS_AVIF = ".avif" in Image.registered_extensions()


def palette() -> Image.Image:
    """Every hue, in light and dark, grey among them."""
    hues = Image.linear_gradient("L").resize(SIZE).rotate(90)
    light = Image.linear_gradient("L").resize(SIZE)
    full = Image.new("L", SIZE, 230)
    image = Image.merge("HSV", (hues, full, light)).convert("RGB")
    image.paste(Image.linear_gradient("L").resize((48, 8)).convert("RGB"), (0, 28))
    return image


def picture(mode: str) -> Image.Image:
    image = palette()
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "P":
        return image.quantize(64)
    image = image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(SIZE).rotate(180))
    return image


def written(path: Path, mode: str, container: str, profile: bytes) -> bool:
    """Whether Pillow writes such a file, and the profile into it."""
    try:
        picture(mode).save(path, container, icc_profile=profile, **CONTAINERS[container])
        with Image.open(path) as file:
            # WebP and AVIF have neither inks nor 16 bits: Pillow writes something else
            is_lost = mode in ("CMYK", "I;16") and file.mode[0] != mode[0]
            return not is_lost and file.info.get("icc_profile") == profile
    except (OSError, KeyError, ValueError, TypeError):
        return False


CASES = [
    (name, mode, container)
    for name, (space, _, _) in PROFILES.items()
    for mode, spaces in MODES.items()
    if space in spaces
    for container in CONTAINERS
]
# what every Pillow from 10.1 on writes, and from 11.3 on "AVIF"
WRITABLE = {
    "RGB": {"PNG", "JPEG", "TIFF", "WEBP", "AVIF"},
    "RGBA": {"PNG", "TIFF", "WEBP", "AVIF"},
    "P": {"PNG", "TIFF", "WEBP", "AVIF"},
    "L": {"PNG", "JPEG", "TIFF", "WEBP", "AVIF"},
    "LA": {"PNG", "TIFF", "WEBP", "AVIF"},
    "I;16": {"PNG", "TIFF"},
    "CMYK": {"JPEG", "TIFF"},
}
# space of a profile -> the mode that LittleCMS takes
INPUTS = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def littlecms(image: Image.Image, profile: bytes) -> Image.Image:
    """An "RGB", "L" or "CMYK" picture in sRGB, as LittleCMS has it."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )


def levels(image: Image.Image, alpha: Image.Image | None = None) -> np.ndarray:
    """The picture on white."""
    white = Image.new("RGB", image.size, "white")
    image = image.convert("RGB")
    return np.asarray(image if alpha is None else Image.composite(image, white, alpha), np.int16)


@pytest.mark.parametrize(("name", "mode", "container"), CASES)
def test_colours_are_littlecms_own_by_the_profile_itself(
    name: str, mode: str, container: str, tmp_path: Path
) -> None:
    space, profile, change = PROFILES[name]
    path = tmp_path / "photo.bin"
    is_written = written(path, mode, container, profile)
    if container == "AVIF" and not PILLOW_HAS_AVIF:
        pytest.skip("this Pillow has no AVIF")
    assert is_written or container not in WRITABLE[mode]
    if not is_written:
        return

    shown = levels(load_photo(path).image)
    with Image.open(path) as file:
        alpha = file.convert("RGBA").getchannel("A") if file.has_transparency_data else None
        # of 16 bits LittleCMS has no answer in every Pillow
        stored = picture("L") if file.mode.startswith("I") else file.convert(INPUTS[space])
    assert np.abs(shown - levels(littlecms(stored, profile), alpha)).max() <= 2
    assert np.abs(shown - levels(stored, alpha)).max() >= change
    if not change:
        assert (shown == levels(stored, alpha)).all()


def test_every_mode_and_container_and_profile_is_in_the_table() -> None:
    spaces = [space for space, _, _ in PROFILES.values()]
    assert len(PROFILES) >= 10 and set(spaces) == {"RGB", "GRAY", "CMYK"}
    assert MODES.keys() == WRITABLE.keys()
    assert set.union(*WRITABLE.values()) == set(CONTAINERS)
    assert sum(len(WRITABLE[mode]) for _, mode, _ in CASES) >= 300


def test_a_profile_that_does_not_serve_is_said_and_the_picture_is_read_as_srgb(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Damaged, or of inks in a picture without inks."""
    for number, profile in enumerate(
        (b"no profile", cmyk_profile("Inks"), PROFILES["linear"][1][:200])
    ):
        path = tmp_path / f"{number}.png"
        picture("RGB").save(path, icc_profile=profile)
        caplog.clear()
        assert (levels(load_photo(path).image) == levels(picture("RGB"))).all()
        (line,) = caplog.messages
        assert line.startswith(f"{path}: its colour profile does not serve (")


def test_inks_without_a_profile_are_a_guess_and_with_a_wrong_one_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for suffix in ("jpg", "tif"):
        path = tmp_path / f"bare.{suffix}"
        picture("CMYK").save(path, quality=98)
        assert load_photo(path).image.mode == "RGB"
        assert caplog.messages.pop().startswith(f"{path}: CMYK without a profile")

        for profile in (b"no profile", PROFILES["Adobe RGB"][1]):
            path = tmp_path / f"wrong.{suffix}"
            picture("CMYK").save(path, icc_profile=profile)
            with pytest.raises(
                UserError, match=r"wrong\.\w+: CMYK, and its colour profile does not serve"
            ):
                load_photo(path)
            # a mask has no colours
            picture("CMYK").save(path, icc_profile=profile)
            assert load_mask(path, load_photo(tmp_path / f"bare.{suffix}")).size == SIZE


def test_greys_with_a_profile_of_colours_are_its_neutral_colours(tmp_path: Path) -> None:
    _, profile, _ = PROFILES["linear"]
    picture("L").save(tmp_path / "grey.png", icc_profile=profile)
    answer = levels(littlecms(picture("L").convert("RGB"), profile))
    assert np.abs(levels(load_photo(tmp_path / "grey.png").image) - answer).max() <= 1


# -- depths ---------------------------------------------------------------------------------------


def grey(dtype: str = "f8") -> np.ndarray:
    """The greys of the picture, 0..255 all of them."""
    return np.asarray(picture("L")).astype(dtype)


def colour() -> np.ndarray:
    return np.asarray(picture("RGB")).astype("<u2")


def with_one(value: float) -> np.ndarray:
    """Floats 0..1, but for one."""
    samples = (grey() / 255).astype("<f4")
    samples[5, 5] = value
    return samples


def pgm(white: int) -> bytes:
    samples = (grey() / 255 * white).round().astype(">u2")
    return f"P5 {SIZE[0]} {SIZE[1]} {white}\n".encode() + samples.tobytes()


# what the file holds -> its bytes, and whether it is read, as the same picture in 8 bits, or
# refused by name
DEPTHS: dict[str, tuple[Callable[[], bytes], bool]] = {
    "16 bits": (lambda: tiff(grey("<u2") * 257), True),
    "16 bits in PNG": (lambda: png(grey("u2") * 257, 0), True),
    "16 bits of colour": (lambda: tiff(colour() * 257), True),
    "16 bits of colour in PNG": (lambda: png(colour() * 257, 2), True),
    "16 bits, the lowest white": (lambda: tiff(65535 - grey("<u2") * 257, photometric=0), True),
    "16 bits in PGM": (lambda: pgm(65535), True),
    "12 bits in PGM": (lambda: pgm(4095), True),
    "12 bits, packed": (lambda: tiff((grey() * 4095 / 255).round().astype("u2"), bits=12), True),
    "15 bits and a sign": (lambda: tiff((grey() * 32767 / 255).astype("<i2")), True),
    "black in 16 bits": (lambda: tiff(grey("<u2") * 0), True),
    "32 bits, 0 to 255": (lambda: tiff(grey("<i4")), True),
    "32 bits without sign, 0 to 255": (lambda: tiff(grey("<u4")), True),
    "32 bits, 0 to 65535": (lambda: tiff(grey("<i4") * 257), True),
    "floats, 0 to 1": (lambda: tiff((grey() / 255).astype("<f4")), True),
    "floats, 0 to 255": (lambda: tiff(grey("<f4")), True),
    "floats, 0 to 65535": (lambda: tiff(grey("<f4") * 257), True),
    "floats, a little over": (lambda: tiff(with_one(1.02)), True),
    "floats, a little under": (lambda: tiff(with_one(-0.02)), True),
    "8 bits in 16": (lambda: tiff(grey("<u2")), False),
    "10 bits in 16": (lambda: tiff(grey("<u2") * 4), False),
    "12 bits in 16": (lambda: tiff(grey("<u2") * 16), False),
    "12 bits in 16 in PNG": (lambda: png(grey("u2") * 16, 0), False),
    "14 bits in 16": (lambda: tiff(grey("<u2") * 64), False),
    "12 bits in 16 of colour": (lambda: tiff(colour() * 16), False),
    "12 bits in 16 of colour in PNG": (lambda: png(colour() * 16, 2), False),
    "12 bits in 32": (lambda: tiff(grey("<i4") * 16), False),
    "24 bits in 32": (lambda: tiff(grey("<i4") * 65793), False),
    "all 32 bits": (lambda: tiff(grey("<u4") * 16843009), False),
    "a negative sample": (lambda: tiff(grey("<i4") - 1), False),
    "a negative sample of 16 bits": (lambda: tiff(grey("<i2") * 128 - 1), False),
    "8 bits and a sign": (lambda: tiff((grey() / 2).astype("i1")), False),
    "floats, light beyond white": (lambda: tiff(with_one(3.2)), False),
    "floats, negative": (lambda: tiff(with_one(-0.5)), False),
    "floats, one not a number": (lambda: tiff(with_one(float("nan"))), False),
    "floats, one infinite": (lambda: tiff(with_one(float("inf"))), False),
    "doubles": (lambda: tiff(grey("<f8") / 255), False),
    "half floats": (lambda: tiff((grey() / 255).astype("<f2")), False),
}  # fmt: skip


@pytest.mark.parametrize("name", DEPTHS)
def test_samples_of_any_depth_are_scaled_or_refused_by_name(name: str, tmp_path: Path) -> None:
    content, is_read = DEPTHS[name]
    path = tmp_path / "deep.tif"
    path.write_bytes(content())
    if not is_read:
        with pytest.raises(UserError, match=r"deep\.tif: not readable as a picture \(") as caught:
            load_photo(path)
        assert "\n" not in str(caught.value)
        return

    wanted = levels(picture("RGB" if "colour" in name else "L"))
    wanted = wanted * 0 if "black" in name else wanted
    difference = np.abs(levels(load_photo(path).image) - wanted)
    difference[5, 5] = 0  # where `with_one` has its one
    assert difference.max() <= 1


def test_a_mask_of_any_depth_is_scaled_or_refused_by_name(tmp_path: Path) -> None:
    picture("RGB").save(tmp_path / "photo.png")
    photo = load_photo(tmp_path / "photo.png")
    box = np.zeros(SIZE[::-1])
    box[5:20, 10:30] = 1
    path = tmp_path / "mask.tif"
    for white, dtype in ((1, "<f4"), (255, "<f4"), (65535, "<u2"), (255, "<i4"), (255, "u1")):
        path.write_bytes(tiff((box * white).astype(dtype)))
        assert load_mask(path, photo).getbbox() == (10, 5, 30, 20)
    for white, dtype in ((255, "<u2"), (1, "<u2"), (1, "<i4"), (1, "u1"), (4095, "<u2")):
        path.write_bytes(tiff((box * white).astype(dtype)))
        with pytest.raises(UserError, match=r"mask\.tif: "):
            load_mask(path, photo)


def test_a_transparent_grey_of_16_bits_is_transparent(tmp_path: Path) -> None:
    samples = grey("u2") * 257
    samples[:10] = 1234
    (tmp_path / "hole.png").write_bytes(png(samples, 0, transparent=1234))
    photo = load_photo(tmp_path / "hole.png")
    assert photo.alpha is not None
    assert (np.asarray(photo.alpha)[:10] == 0).all() and (np.asarray(photo.alpha)[12:] == 255).all()
