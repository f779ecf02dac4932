"""One place opens pictures: torn ends, brands, orientations, limits, masks by name, what is said of
them. Colours and depths are in test_colours, real peaks of memory in test_picture_memory."""

import io
import logging
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import environment
from PIL import Image

from eqdiff.data import decode, pictures
from eqdiff.data.folder import (
    SUFFIXES,
    find_mask,
    find_photos,
    load_mask,
    load_photo,
    pictures_in,
    stray_masks,
)
from eqdiff.data.subject import load_subject, square
from eqdiff.errors import UserError

SIZE = (101, 67)


def noise() -> Image.Image:
    """A picture without two equal parts."""
    grey = Image.effect_noise(SIZE, 60)
    return Image.merge("RGB", [grey.rotate(turn) for turn in (0, 90, 180)])


def saved(image: Image.Image, container: str, **how: object) -> bytes:
    data = io.BytesIO()
    image.save(data, container, **how)
    return data.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[pictures.ORIENTATION] = orientation
    return found


# -- torn ends -------------------------------------------------------------------------------------

JPEGS = {
    "plain": lambda: saved(noise(), "JPEG"),
    "fine": lambda: saved(noise(), "JPEG", quality=98, subsampling=0),
    "progressive": lambda: saved(noise(), "JPEG", progressive=True),
    "grey": lambda: saved(noise().convert("L"), "JPEG"),
    "two in one": lambda: saved(noise(), "MPO", save_all=True, append_images=[noise()]),
    "turned": lambda: saved(noise(), "JPEG", exif=exif(6)),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_its_end_mark_alone_is_read_and_one_that_lacks_pixels_is_not(
    name: str, tmp_path: Path
) -> None:
    whole = JPEGS[name]()
    path = tmp_path / "torn.jpg"
    path.write_bytes(whole)
    photo = load_photo(path)
    small = load_photo(path, enough=30)

    for cut, rest in ((1, b""), (2, b""), (2, bytes(1000))):
        path.write_bytes(whole[:-cut] + rest)
        assert load_photo(path).image.tobytes() == photo.image.tobytes()
        assert load_photo(path, enough=30).image.tobytes() == small.image.tobytes()
        assert load_photo(path).orientation == photo.orientation

    first = whole if name != "two in one" else whole[: whole.index(b"\xff\xd9") + 2]
    for cut in (*range(3, 20), 100, len(first) // 2):
        for rest in (b"", bytes(1000)):  # half a download may be filled up with zeros
            path.write_bytes(first[:-cut] + rest)
            with pytest.raises(UserError, match=r"torn\.jpg: not readable as a picture"):
                load_photo(path)


@pytest.mark.parametrize("container", ["PNG", "GIF"])
def test_what_lacks_no_pixel_is_read(container: str, tmp_path: Path) -> None:
    """The last chunk of a PNG is empty, the last byte of a GIF a mark."""
    whole = saved(noise(), container)
    (tmp_path / "whole").write_bytes(whole)
    (tmp_path / "torn").write_bytes(whole[:-1])
    images = [load_photo(tmp_path / name).image for name in ("whole", "torn")]
    assert images[0].tobytes() == images[1].tobytes()


def test_damaged_exif_data_does_not_cost_the_photo(tmp_path: Path) -> None:
    for orientation in (b"\0\0", b"\0\x09", b"\xff\xff"):
        data = saved(noise(), "JPEG", exif=exif(6))
        start = data.index(b"\x01\x12\x00\x03")  # tag, type
        path = tmp_path / "photo.jpg"
        path.write_bytes(data[: start + 8] + orientation + data[start + 10 :])
        assert load_photo(path).orientation == 1

    for junk in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0" + b"junk" * 9):
        for container in ("JPEG", "PNG", "WEBP"):
            path.write_bytes(saved(noise(), container, exif=junk))
            assert load_photo(path).image.size == SIZE


# -- brands ----------------------------------------------------------------------------------------


def test_an_avif_is_read_whatever_its_first_brand(tmp_path: Path) -> None:
    if ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    data = saved(noise(), "AVIF", quality=95)
    (tmp_path / "plain.avif").write_bytes(data)
    assert data[8:12] == b"avif"
    for brand in (b"mif1", b"miaf"):
        path = tmp_path / f"{brand.decode()}.avif"
        path.write_bytes(data[:8] + brand + data[12:])
        if brand == b"mif1":
            plain = load_photo(tmp_path / "plain.avif").image
            assert load_photo(path).image.tobytes() == plain.tobytes()
        else:  # Pillow looks at the first brand alone
            with pytest.raises(UserError, match=r"miaf\.avif: not readable as a picture"):
                load_photo(path)


def test_heic_by_any_of_its_brands_names_what_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brands in ((b"heic",), (b"mif1", b"heic"), (b"mif1", b"miaf", b"heix")):
        box = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
        (tmp_path / "phone.jpg").write_bytes(struct.pack(">I", 4 + len(box)) + box + bytes(40))
        with pytest.raises(UserError, match=r"phone\.jpg: HEIC; to read it: pip install"):
            load_photo(tmp_path / "phone.jpg")


# -- orientations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_and_masks_are_turned_by_one_rule(orientation: int, tmp_path: Path) -> None:
    """The same raster with the same EXIF data shows the same thing, as a photo and as a mask, in
    every container."""
    size = (90, 60)
    photo = Image.new("RGB", size, "black")
    photo.paste("white", (10, 20, 30, 40))
    for container in ("JPEG", "PNG", "TIFF", "WEBP", *(["AVIF"] if "AVIF" in Image.SAVE else [])):
        path = tmp_path / f"{container}.bin"
        path.write_bytes(saved(photo, container, exif=exif(orientation), quality=95))
        shown = load_photo(path)
        assert shown.orientation == orientation or container == "AVIF"  # which turns by itself
        assert shown.size == shown.image.size == (size if orientation < 5 else size[::-1])

        light = np.asarray(shown.image.convert("L")) >= 128
        for other in ("JPEG", "PNG", "TIFF", "WEBP"):
            mask = tmp_path / f"mask.{other}"
            mask.write_bytes(saved(photo, other, exif=exif(orientation), quality=95))
            same = (np.asarray(load_mask(mask, shown)) > 0) == light
            assert same.mean() > 0.99, (container, other)


# -- limits ----------------------------------------------------------------------------------------


def stand_in(container: str, mode: str, pixels: int) -> SimpleNamespace:
    """What is asked of a file before it is decoded."""
    side = int(pixels**0.5)
    bands = Image.new(mode, (1, 1)).getbands()
    return SimpleNamespace(
        width=side,
        height=side,
        format=container,
        mode=mode,
        getbands=lambda: bands,
        is_animated=False,
    )


CONTAINERS = [
    *[("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("JPEG", mode) for mode in ("L", "RGB")],
    *[("MPO", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("PPM", "RGB"), ("PPM", "I"), ("PPM", "F")],
    *[("WEBP", mode) for mode in ("RGB", "RGBA")],
]


@pytest.mark.parametrize(("container", "mode"), CONTAINERS)
def test_nothing_under_150_million_pixels_is_refused(container: str, mode: str) -> None:
    file = stand_in(container, mode, 149_900_000)
    pixels = file.width * file.height
    decode.require_room(file, Path("photo"), 2, 5 * pixels // 4)
    decode.require_room(file, Path("mask"), 1, 2 * pixels)


def test_too_large_a_picture_is_one_line_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("it was decoded"))
    monkeypatch.setattr(decode, "MOST_BYTES", 20_000)
    for container, how in (
        ("PNG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
    ):
        path = tmp_path / "large.bin"
        path.write_bytes(saved(noise(), container, **how))
        for read in (load_photo, lambda path: load_mask(path, None)):
            with pytest.raises(UserError, match=r"large\.bin: 101 x 67 pixels as \w+ would take"):
                read(path)


def test_a_tiff_of_one_giant_tile_is_refused(tmp_path: Path) -> None:
    """10 x 10 pixels, in a tile of 60,000 x 60,000."""
    data = saved(Image.new("RGB", (16, 16)), "TIFF", compression="tiff_adobe_deflate")
    with Image.open(io.BytesIO(data)) as file:
        file.tag_v2[322] = 60_000
        file.tag_v2[323] = 60_000
        with pytest.raises(UserError, match=r"tile\.tif: 16 x 16 .* as TIFF would take 10\.8 GB"):
            decode.require_room(file, Path("tile.tif"), 1, 0)


def test_a_line_is_no_picture(tmp_path: Path) -> None:
    for size in ((1, 80_000), (5000, 2)):
        Image.new("RGBA", size, (1, 2, 3, 4)).save(tmp_path / "line.png")
        with pytest.raises(UserError, match=r"line\.png: \d+ x \d+ pixels, a line and no picture"):
            load_photo(tmp_path / "line.png")


def test_a_photo_beyond_64_million_pixels_is_reduced_by_a_whole_factor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_KEPT", 1000)
    for container, small in (("PNG", (34, 23)), ("JPEG", (26, 17))):  # by 3; by 2 twice
        path = tmp_path / "photo.bin"
        path.write_bytes(saved(noise(), container))
        photo = load_photo(path)
        assert photo.size == SIZE
        assert photo.image.size == small
        mask = Image.new("L", SIZE)
        mask.paste(255, (0, 0, 51, 67))
        mask.save(tmp_path / "mask.png")
        assert load_mask(tmp_path / "mask.png", photo).size == small


@pytest.mark.parametrize("size", [(300, 40), (40, 300), (120, 90)])
def test_strips_make_the_same_picture_as_the_whole(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise().resize(size).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(size))
    image.save(tmp_path / "a.png")
    for enough in (None, 13, 30):
        monkeypatch.setattr(decode, "STRIP", 10**6)
        whole = load_photo(tmp_path / "a.png", enough=enough)
        monkeypatch.setattr(decode, "STRIP", 1000)
        strips = load_photo(tmp_path / "a.png", enough=enough)
        assert whole.image.tobytes() == strips.image.tobytes()
        assert whole.alpha.tobytes() == strips.alpha.tobytes()


def test_a_subject_along_a_thin_picture_is_squared_in_little_memory(tmp_path: Path) -> None:
    """40 x 80,000 pixels, all of them subject: a square of that side would take 19 GB."""
    image = Image.new("RGB", (40, 80_000), "red")
    cut, mask = square(image, Image.new("L", image.size, 255), 64)
    assert cut.size == mask.size == (64, 64)
    assert {color for _, color in cut.getcolors()} == {(255, 0, 0)}
    assert 0 < np.asarray(mask).mean() < 10  # 40 of 80,000 wide


LIMITED = """
import resource, sys
from pathlib import Path
from eqdiff.data.folder import Photo, load_mask, load_photo
from eqdiff.data.subject import load_subject
from eqdiff.errors import UserError
from PIL import Image
folder = Path(sys.argv[1])
small = Photo(Image.new("RGB", (50, 50)), None, 1, Path("x"), (5000, 5000))
load_photo(folder / "masks" / "tiny.png")  # libraries
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 60_000_000, -1))
for read in (
    lambda: load_photo(folder / "photo.png"),
    lambda: load_mask(folder / "photo.png", small),
    lambda: load_subject(folder, class_word="x", resolution=64),
):
    try:
        read()
        print("read")
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit that Linux keeps")
def test_a_failure_of_memory_names_the_photo(tmp_path: Path) -> None:
    Image.new("RGB", (5000, 5000), "white").save(tmp_path / "photo.png", compress_level=1)
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (5, 5), "white").save(tmp_path / "masks" / "tiny.png")
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    lines = run.stdout.splitlines()
    assert len(lines) == 3, run.stderr
    for line in lines:
        assert line.startswith(f"{tmp_path / 'photo.png'}: not enough memory to read it"), line


# -- which files -----------------------------------------------------------------------------------


def test_one_rule_says_what_counts_as_a_picture(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        (tmp_path / f"a{suffix}").write_bytes(b"x")
    (tmp_path / "B.JPG").write_bytes(b"x")
    for name in ("._a.png", ".hidden.jpg", "notes.txt", "noname"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    names = {path.name for path in pictures_in(tmp_path)}
    assert names == {"B.JPG", *(f"a{suffix}" for suffix in SUFFIXES)}


def test_a_mask_goes_by_its_photos_stem_or_its_whole_name(tmp_path: Path) -> None:
    photo = Path("03.jpg")
    assert find_mask(tmp_path, photo) is None
    for name in ("03.jpg.webp", "03.jpg.png", "03.gif", "03.png"):  # each before those above
        Image.new("L", (4, 4), 255).save(tmp_path / name)
        assert find_mask(tmp_path, photo).name == name
    assert find_mask(tmp_path, Path("03.jpg.jpg")).name == "03.jpg.png"
    assert find_mask(tmp_path, Path("3.jpg")) is None


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    """Three photos, the third without a mask of its name."""
    (tmp_path / "masks").mkdir()
    for number in (1, 2, 3):
        image = Image.new("RGB", (90, 60), "blue")
        image.paste("red", (10 * number, 20, 50, 50))
        image.save(tmp_path / f"0{number}.jpg")
    mask = Image.new("L", (90, 60))
    mask.paste(255, (10, 20, 50, 50))
    mask.save(tmp_path / "masks" / "01.png")
    mask.save(tmp_path / "masks" / "02.jpg.png")
    mask.save(tmp_path / "masks" / "dog3.png")
    return tmp_path


def test_a_mask_that_no_photo_takes_is_named_with_the_name_that_it_needs(subject: Path) -> None:
    line = stray_masks(subject / "masks", find_photos(subject))
    assert line == (
        f"{subject / 'masks'}: no photo's masks, ignored: dog3.png; the mask of 03.jpg is 03.png"
    )
    (subject / "masks" / "dog3.png").rename(subject / "masks" / "03.png")
    assert stray_masks(subject / "masks", find_photos(subject)) is None
    assert stray_masks(subject / "nowhere", find_photos(subject)) is None

    # a second mask of a photo, a file that is no picture; what desktops leave is no matter
    (subject / "masks" / "01.gif").write_bytes(b"x")
    (subject / "masks" / "03.npy").write_bytes(b"x")
    (subject / "masks" / "._03.png").write_bytes(b"x")
    (subject / "masks" / "overlay").mkdir()
    line = stray_masks(subject / "masks", find_photos(subject))
    assert "no photo's masks, ignored: 01.gif, 03.npy; " in line


@pytest.mark.slow
def test_it_is_said_where_masks_are_made_and_where_they_are_used(
    subject: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from eqdiff.masks.make import make_masks
    from eqdiff.settings.masks import MaskConfig

    masks = subject / "masks"
    config = MaskConfig(mask_maker="colours")
    make_masks(subject, config, masks, word="box", given=(masks,))
    assert [line for line in caplog.messages if "dog3.png" in line]
    caplog.clear()
    load_subject(subject, class_word="box", resolution=32)
    assert [line for line in caplog.messages if "dog3.png" in line]


# -- tiny photos -----------------------------------------------------------------------------------


def test_photos_that_are_enlarged_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, size in (("tiny", (90, 40)), ("just", (70, 64)), ("large", (300, 200))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    with caplog.at_level(logging.WARNING):
        load_subject(tmp_path, class_word="box", resolution=64)
    (line,) = [line for line in caplog.messages if "so enlarged" in line]
    assert line == (
        f"{tmp_path}: smaller than the 64 pixels that are learned, so enlarged and blurred: "
        "tiny.png (90 x 40); larger photos are better"
    )

    # a subject longer than the short side is shown whole, and so made smaller
    mask = Image.new("L", (90, 40))
    mask.paste(255, (5, 5, 85, 35))
    (tmp_path / "masks").mkdir()
    for name in ("tiny", "just", "large"):
        with Image.open(tmp_path / f"{name}.png") as photo:
            mask.resize(photo.size).save(tmp_path / "masks" / f"{name}.png")
    caplog.clear()
    load_subject(tmp_path, class_word="box", resolution=64)
    assert not [line for line in caplog.messages if "so enlarged" in line]


def test_a_folder_of_large_photos_is_not_in_memory_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eqdiff.data import subject as module

    for number in range(4):
        Image.new("RGB", (90, 60), "red").save(tmp_path / f"{number}.png")
    events = []

    def noted(name: str, function: Callable) -> Callable:
        return lambda *args, **kwargs: (events.append(name), function(*args, **kwargs))[1]

    monkeypatch.setattr(module, "load_photo", noted("read", module.load_photo))
    monkeypatch.setattr(module, "square", noted("squared", module.square))
    load_subject(tmp_path, class_word="box", resolution=32)
    assert events == ["read", "squared"] * 4
