"""A zoo of odd photos, each checked by size, orientation and colours; junk and copies in a folder;
huge pictures."""

import ast
import logging
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms
from pixels import png, tiff

from eqdiff.data import pictures
from eqdiff.data.folder import Photo, find_photos, folder_warnings, load_mask, load_photo
from eqdiff.data.subject import load_subject, square
from eqdiff.errors import UserError

SIZE = (60, 40)
LEFT, RIGHT, BELOW = (220, 40, 30), (20, 60, 200), (40, 160, 60)  # the colours of a `scene`


def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """Red above left, blue above right, green below: every turn and flip of it is another
    picture.
    """
    width, height = size
    image = Image.new("RGB", size, BELOW)
    image.paste(LEFT, (0, 0, width // 2, height // 2))
    image.paste(RIGHT, (width // 2, 0, width, height // 2))
    return image


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """What a scene shows above left, above right and below."""
    width, height = image.size
    return [image.getpixel((x, y)) for x, y in ((width // 4, height // 4), (width * 3 // 4,
    height // 4),
                                                (width // 2, height * 3 // 4))]  # fmt: skip


def assert_scene(image: Image.Image, within: int, wanted: tuple = (LEFT, RIGHT, BELOW)) -> None:
    assert image.mode == "RGB" and image.size == SIZE
    assert np.abs(np.subtract(colours(image), wanted)).max() <= within, colours(image)


def grey_of(colour: tuple[int, ...]) -> tuple[int, ...]:
    return (Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0)),) * 3


GREYS = tuple(map(grey_of, (LEFT, RIGHT, BELOW)))


def deep(alpha: bool = False) -> np.ndarray:
    """The scene in 16 bits."""
    rows = np.asarray(scene()).astype(np.uint16) * 257
    return np.dstack([rows, np.full(rows.shape[:2], 65535, np.uint16)]) if alpha else rows


def grey16() -> Image.Image:
    return Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 257)


def palette_with_hole() -> Image.Image:
    image = scene().quantize(8)
    image.info["transparency"] = image.getpixel((0, 0))
    return image


def wide_gamut() -> tuple[Image.Image, bytes]:
    """The scene in a space whose red and green are swapped with sRGB's, and that space's
    profile.
    """
    blob = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {
        bytes(blob[i : i + 4]): i
        for i in range(132, 132 + 12 * int.from_bytes(blob[128:132], "big"), 12)
    }
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    blob[red + 4 : red + 12], blob[green + 4 : green + 12] = (
        blob[green + 4 : green + 12],
        blob[red + 4 : red + 12],
    )
    named = (
        bytes(blob)
        .replace("sRGB".encode("utf-16-be"), "grbX".encode("utf-16-be"))
        .replace(b"sRGB", b"grbX")
    )
    swapped = Image.merge("RGB", [scene().getchannel(band) for band in "GRB"])
    return swapped, named


def lab() -> Image.Image:
    return ImageCms.profileToProfile(
        scene(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )


def animated(path: Path, **how: object) -> None:
    scene().save(path, save_all=True, append_images=[Image.new("RGB", SIZE, "white")] * 2, **how)


def without_adobes_mark(path: Path) -> None:
    """A CMYK JPEG as Pillow and Photoshop write it, inverted, its APP14 segment taken out."""
    scene().convert("CMYK").save(path, quality=98)
    data = path.read_bytes()
    start = data.index(b"\xff\xee")
    path.write_bytes(
        data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]
    )


JPEG = {"quality": 98, "subsampling": 0}
# name of the file -> what writes it, how far colours may be off, and other colours than the scene's
ZOO: dict[str, tuple[Callable[[Path], object], int, tuple]] = {
    "plain.jpg": (lambda p: scene().save(p, **JPEG), 4, ()),
    "progressive.jpg": (lambda p: scene().save(p, progressive=True, **JPEG), 4, ()),
    "palette.png": (lambda p: scene().quantize(8).save(p), 0, ()),
    "hole.png": (lambda p: palette_with_hole().save(p), 0, ((255, 255, 255), RIGHT, BELOW)),
    "rgba.png": (lambda p: scene().convert("RGBA").save(p), 0, ()),
    "alpha.webp": (lambda p: scene().convert("RGBA").save(p, lossless=True), 0, ()),
    "la.png": (lambda p: scene().convert("LA").save(p), 0, GREYS),
    "bits.png": (lambda p: Image.new("1", SIZE, 1).save(p), 0, ((255,) * 3,) * 3),
    "grey.jpg": (lambda p: scene().convert("L").save(p, **JPEG), 3, GREYS),
    "grey16.png": (lambda p: grey16().save(p), 0, GREYS),
    "grey16.tif": (lambda p: grey16().save(p), 0, GREYS),
    "deep.png": (lambda p: p.write_bytes(png(deep(), 2)), 1, ()),
    "deep_alpha.png": (lambda p: p.write_bytes(png(deep(alpha=True), 6)), 1, ()),
    "deep.tif": (lambda p: p.write_bytes(tiff(deep())), 1, ()),
    "cmyk.jpg": (lambda p: scene().convert("CMYK").save(p, quality=98), 6, ()),
    "cmyk_unmarked.jpg": (without_adobes_mark, 6, ()),
    "cmyk.tif": (lambda p: scene().convert("CMYK").save(p), 2, ()),
    "ycbcr.tif": (lambda p: scene().save(p, compression="jpeg", quality=98), 6, ()),
    "lab.tif": (lambda p: lab().save(p), 6, ()),
    "moving.gif": (animated, 0, ()),
    "moving.png": (animated, 0, ()),
    "moving.webp": (lambda p: animated(p, lossless=True), 0, ()),
    "profile.png": (lambda p: wide_gamut()[0].save(p, icc_profile=wide_gamut()[1]), 3, ()),
    "profile.jpg": (lambda p: wide_gamut()[0].save(p, icc_profile=wide_gamut()[1], **JPEG), 6, ()),
    "bad_profile.png": (lambda p: scene().save(p, icc_profile=b"no profile"), 0, ()),
    "wrong_profile.png": (lambda p: scene().convert("L").save(p, icc_profile=wide_gamut()[1]), 0,
    GREYS),
    "scene.bmp": (lambda p: scene().save(p), 0, ()),
    "scene.ppm": (lambda p: scene().save(p), 0, ()),
    "a jpeg.png": (lambda p: scene().save(p, "JPEG", **JPEG), 4, ()),
    "ünï.JPEG": (lambda p: scene().save(p, **JPEG), 4, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_read_by_value(tmp_path: Path, name: str) -> None:
    write, within, wanted = ZOO[name]
    write(tmp_path / name)
    photo = load_photo(tmp_path / name)
    assert_scene(photo.image, within, *([wanted] if wanted else []))
    assert (photo.size, photo.orientation, photo.alpha is None) == (SIZE, 1, name != "hole.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_also_where_the_picture_is_reduced(
    tmp_path: Path, orientation: int
) -> None:
    big = scene((480, 320))
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
        orientation, pictures.TURNS.get(orientation)
    )
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    for name in ("turned.jpg", "turned.png", "turned.tif"):
        (big if back is None else big.transpose(back)).save(tmp_path / name, exif=exif, quality=98)
        photo = load_photo(tmp_path / name, enough=40)
        assert photo.size == (480, 320) and photo.orientation == orientation
        assert_scene(photo.image, 4)


def test_heic_is_upright_where_its_library_is(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 6
    turned = scene().transpose(Image.Transpose.ROTATE_90)
    heif.from_pillow(turned).save(tmp_path / "phone.heic", quality=98, exif=exif.tobytes())
    shutil.copy(tmp_path / "phone.heic", tmp_path / "sent.jpg")
    for name in ("phone.heic", "sent.jpg"):
        assert_scene(load_photo(tmp_path / name).image, 10)


def test_heic_without_its_library_is_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x1cftypheic" + bytes(40))
    with pytest.raises(UserError, match=r"phone\.heic: HEIC; to read it: pip install pillow-heif"):
        load_photo(tmp_path / "phone.heic")


def test_avif_is_read_or_says_what_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "photo.avif"
    if ".avif" in Image.registered_extensions():
        scene().save(file, quality=98)
        assert_scene(load_photo(file).image, 10)
    else:
        file.write_bytes(b"\0\0\0\x1cftypavif" + bytes(40))
        with pytest.raises(UserError, match=r"photo\.avif: AVIF.*pip install --upgrade pillow"):
            load_photo(file)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (3, 4000)])
def test_extreme_shapes_are_squares_in_the_end(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, LEFT).save(tmp_path / "p.png")
    photo = load_photo(tmp_path / "p.png", enough=64)
    assert photo.image.size == photo.size == size
    image, mask = square(photo.image, None, 32)
    assert image.size == mask.size == (32, 32)
    assert np.abs(np.asarray(image).astype(int) - LEFT).max() <= 1


def broken(kind: str) -> bytes:
    from io import BytesIO

    file = BytesIO()
    Image.effect_noise((200, 200), 60).convert("RGB").save(
        file, "JPEG", progressive=kind == "progressive"
    )
    whole = file.getvalue()
    return {
        "empty": b"",
        "text": b"my holiday",
        "half a jpeg": whole[: len(whole) // 2],
        "progressive": whole[: len(whole) // 2],
        "html": b"<!DOCTYPE html><html>404</html>",
        "film": b"\0\0\0\x20ftypisom" + bytes(100),
        "png of nothing": png(np.zeros((1, 1, 3), np.uint16), 2)[:40],
        "bomb": b"P6 60000 60000 255\n",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["empty", "text", "half a jpeg", "progressive", "html", "film", "png of nothing", "bomb"],
)
def test_what_cannot_be_read_is_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "IMG_1.jpg").write_bytes(broken(kind))
    with pytest.raises(UserError) as caught:
        load_photo(tmp_path / "IMG_1.jpg")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'IMG_1.jpg'}: ") and "\n" not in line
    assert ("60000 x 60000 pixels, more than 300 million" in line) == (kind == "bomb")
    assert "pillow-heif" not in line


def test_huge_jpegs_are_decoded_reduced_and_never_below_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene((2400, 1600)).save(tmp_path / "big.jpg", quality=90)
    scene((2400, 1600)).save(tmp_path / "big.png")
    decoded, decode = [], pictures.decode

    def seen(file: Image.Image, path: Path, factor: int) -> tuple:
        rows, size = decode(file, path, factor)
        decoded.append(size)
        return rows, size

    monkeypatch.setattr(pictures, "decode", seen)
    for enough, jpeg, factor in ((64, 8, 3), (200, 8, 1), (201, 4, 1), (1600, 1, 1), (5000, 1, 1)):
        photo = load_photo(tmp_path / "big.jpg", enough=enough)
        assert decoded.pop() == (2400 // jpeg, 1600 // jpeg) and photo.size == (2400, 1600)
        assert photo.image.size == (2400 // jpeg // factor, math.ceil(1600 / jpeg / factor))
        assert min(load_photo(tmp_path / "big.png", enough=enough).image.size) >= min(enough, 1600)
        assert decoded.pop() == (2400, 1600)


def test_more_pixels_than_pillow_likes_are_read_and_its_limit_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    scene().save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert_scene(load_photo(tmp_path / "p.png").image, 0)
    assert Image.MAX_IMAGE_PIXELS == 100 and not recwarn.list


def test_a_mask_fits_the_whole_photo_and_serves_the_reduced_one(tmp_path: Path) -> None:
    scene((480, 320)).save(tmp_path / "p.jpg")
    mask = Image.new("L", (480, 320))
    mask.paste(255, (0, 0, 240, 160))
    mask.save(tmp_path / "m.png")
    photo = load_photo(tmp_path / "p.jpg", enough=40)
    assert photo.image.size == (60, 40)
    assert load_mask(tmp_path / "m.png", photo).getbbox() == (0, 0, 30, 20)


def test_masks_are_no_colours(tmp_path: Path) -> None:
    """A grey profile would move half grey."""
    scene().save(tmp_path / "p.png")
    image, profile = wide_gamut()
    image.paste((200, 0, 0), (0, 0, *SIZE))
    image.save(tmp_path / "m.png", icc_profile=profile)
    grey = image.convert("L").getpixel((0, 0))
    image.paste((grey + 130,) * 3, (0, 0, 5, 5))
    image.save(tmp_path / "m.png", icc_profile=profile)
    mask = load_mask(tmp_path / "m.png", load_photo(tmp_path / "p.png"), binary=False)
    assert mask.getpixel((30, 30)) == grey


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Two photos, one of them twice, among what phones and computers leave there."""
    scene().save(tmp_path / "a.jpg")
    scene((90, 60)).save(tmp_path / "b.png")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "c.jpg")
    for name in ("Thumbs.db", ".DS_Store", "._a.jpg", "notes.txt", "clip.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "more").mkdir()
    (tmp_path / "class.txt").write_text("box")
    return tmp_path


def test_junk_is_ignored_and_copies_are_noted_in_a_line_each(
    album: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = find_photos(album)
    assert [path.name for path in photos] == ["a.jpg", "b.png", "c.jpg"]
    junk, same = folder_warnings(album, photos)
    names = ".DS_Store, ._a.jpg, Thumbs.db, clip.mp4, more, notes.txt, zero.jpg"
    assert junk == f"{album}: 7 in it that are no photos, ignored: {names}"
    assert same == f"{album}: a.jpg, c.jpg are one photo, which counts 2 times"
    with caplog.at_level(logging.WARNING):
        assert len(load_subject(album, class_word="box", resolution=32).images) == 3
    assert caplog.messages.count(junk) == caplog.messages.count(same) == 1


def test_a_folder_of_photos_alone_gets_no_remark(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.jpg")
    scene((90, 60)).save(tmp_path / "b.jpg")
    (tmp_path / "masks").mkdir()
    assert folder_warnings(tmp_path, find_photos(tmp_path)) == []


@pytest.mark.parametrize("size", [(200, 100), (100, 200)])
@pytest.mark.parametrize("place", [0, 20])
def test_a_subject_longer_than_the_short_side_is_kept_whole(
    size: tuple[int, int], place: int, caplog: pytest.LogCaptureFixture
) -> None:
    """160 of 200 pixels long and 40 of 100 wide, in 80 pixels: halved both ways, and the ground
    goes on."""
    wide = size[0] > size[1]
    box = (place, 30, place + 160, 70) if wide else (30, place, 70, place + 160)
    image, mask = Image.new("RGB", size, BELOW), Image.new("L", size)
    image.paste(LEFT, box)
    mask.paste(255, box)
    image, mask = square(image, mask, 80, name="long.jpg")
    assert image.size == mask.size == (80, 80)
    left, top, right, bottom = mask.getbbox()
    assert sorted((right - left, bottom - top)) == [20, 80]
    red = np.abs(np.asarray(image).astype(int) - LEFT).max(-1) < 60
    assert (red == (np.asarray(mask) > 127)).mean() > 0.97
    assert np.abs(np.asarray(image)[~red].astype(int) - BELOW).max() < 60
    assert "long.jpg" in caplog.text and "continued" in caplog.text


def test_beyond_the_edge_the_outermost_pixels_go_on_and_the_subject_is_shown_once() -> None:
    image = Image.new("RGB", (100, 50), RIGHT)
    image.paste(LEFT, (0, 0, 100, 10))
    mask = Image.new("L", (100, 50))
    mask.paste(255, (0, 0, 100, 10))
    image, mask = square(image, mask, 100)
    assert mask.getbbox() == (0, 25, 100, 35)
    assert {image.getpixel((50, y)) for y in range(34)} == {LEFT}
    assert {image.getpixel((50, y)) for y in range(36, 100)} == {RIGHT}


# -- other formats under a photo's name ------------------------------------------------------------


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trace that a program named gs leaves when it is started. Pillow looks for it anew."""
    trace = tmp_path / "gs_was_started"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch '{trace}'\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return trace


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO", "PCX", "SGI", "DDS"])
def test_a_format_that_is_not_ours_is_refused_under_any_name(
    tmp_path: Path, ghostscript: Path, kind: str
) -> None:
    for name in ("a.jpg", "a.png", "a.tif"):
        scene().save(tmp_path / name, format=kind)
        for read in (load_photo, lambda path: load_mask(path, Photo(scene(), None, 1, path, SIZE))):
            with pytest.raises(
                UserError, match=r"not readable as a picture \(no known format\)"
            ) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_a_format_of_ours_is_read_under_any_name(tmp_path: Path, kind: str) -> None:
    scene().save(tmp_path / "a.jpg", format=kind)
    assert load_photo(tmp_path / "a.jpg").image.size == SIZE


def test_pictures_are_opened_in_one_place() -> None:
    package = Path(pictures.__file__).parent.parent
    for path in (*package.rglob("*.py"), *package.parent.glob("*.py")):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        opening = [
            call
            for call in calls
            if ast.unparse(call.func).endswith(("Image.open", "imread", "read_image"))
        ]
        allowed = path.name == "pictures.py" and all(
            "formats" in [k.arg for k in call.keywords] for call in opening
        )
        assert not opening or allowed, path.name
        others = ("imdecode", "ImageFile", "decode_image")
        decoding = [call for call in calls if ast.unparse(call.func).endswith(others)]
        assert not decoding or path.name == "decode.py", path.name
