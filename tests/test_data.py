"""photos.py and data.py: files of every kind, masks that fit or do not, squares, augmentation,
sheets."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eqdiff.data.augment import augment_reference
from eqdiff.data.folder import find_photos, load_mask, load_photo
from eqdiff.data.pictures import TURNS
from eqdiff.data.sheets import image_grid, overlay_sheet, to_pil
from eqdiff.data.subject import Subject, load_subject, square
from eqdiff.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)
BOX = (10, 20, 30, 40)  # the subject in a `_photo`: left, top, right, bottom


def _photo(size=(90, 60), box=BOX):
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, box)
    return image


def _mask(size=(90, 60), box=BOX):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _is_red(image):
    pixels = np.asarray(image).astype(int)
    return (pixels[..., 0] > 128) & (pixels[..., 2] < 128)


@pytest.fixture
def folder(tmp_path):
    """Two photos with masks of their red boxes."""
    (tmp_path / "masks").mkdir()
    for name, size in (("a", (90, 60)), ("b", (60, 90))):
        _photo(size).save(tmp_path / f"{name}.png")
        _mask(size).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def _load(folder, **options):
    return load_subject(folder, **{"class_word": "box", "resolution": 32, **options})


def test_only_pictures_right_in_the_folder_count(folder):
    (folder / "notes.txt").write_text("x")
    (folder / "class.txt").write_text("box")
    _photo().save(folder / ".hidden.png")
    _photo().save(folder / "C.JPG")
    (folder / "sub.png").mkdir()
    assert [path.name for path in find_photos(folder)] == ["C.JPG", "a.png", "b.png"]


def test_no_photos_no_folder_and_twins_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no photos"):
        find_photos(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        find_photos(tmp_path / "nowhere")
    _photo().save(tmp_path / "a.png")
    _photo().save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg and a\.png"):
        find_photos(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"x" * 40, None])
def test_an_unreadable_photo_is_named(tmp_path, content):
    file = tmp_path / "broken.png"
    if content is None:  # cut short
        Image.effect_noise((64, 64), 50).save(file)
        content = file.read_bytes()[:900]
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png: not readable") as caught:
        load_photo(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright_by_exif(tmp_path, orientation, suffix):
    upright = _photo()
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
        orientation, TURNS.get(orientation)
    )
    stored = upright.transpose(back) if back is not None else upright
    stored.save(tmp_path / f"p.{suffix}", exif=_exif(orientation), quality=95)
    photo = load_photo(tmp_path / f"p.{suffix}")
    assert photo.image.size == upright.size
    assert (_is_red(photo.image) == _is_red(upright)).mean() > 0.98


def _grey16():
    ramp = np.zeros((60, 90), np.uint16)
    ramp[20:40, 10:30] = 40_000
    return Image.fromarray(ramp)


def _animated(tmp_path):
    _photo().save(
        tmp_path / "p.gif", save_all=True, append_images=[Image.new("RGB", (90, 60), "white")]
    )
    return tmp_path / "p.gif"


def test_palette_grey_cmyk_16_bit_and_animated_become_8_bit_rgb(tmp_path):
    for kind, suffix in (("P", "png"), ("CMYK", "jpg"), ("RGBA", "png")):
        _photo().convert(kind).save(tmp_path / f"{kind}.{suffix}")
        photo = load_photo(tmp_path / f"{kind}.{suffix}")
        assert photo.image.mode == "RGB" and photo.alpha is None
        assert (_is_red(photo.image) == _is_red(_photo())).mean() > 0.95, kind
    _mask().save(tmp_path / "grey.png")
    assert np.asarray(load_photo(tmp_path / "grey.png").image)[30, 20].tolist() == [255] * 3
    _mask().convert("1").save(tmp_path / "bits.png")
    assert np.asarray(load_photo(tmp_path / "bits.png").image)[30, 20].tolist() == [255] * 3
    _grey16().save(tmp_path / "deep.png")
    levels = np.asarray(load_photo(tmp_path / "deep.png").image)
    assert levels.max() == 40_000 // 257 and levels.min() == 0
    assert (_is_red(load_photo(_animated(tmp_path)).image) == _is_red(_photo())).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_white_below_and_serves_as_mask(tmp_path, mode):
    if mode == "P":
        picture = _mask().point(lambda grey: 1 if grey else 0).convert("P")
        picture.putpalette([0, 0, 0, 200, 0, 0])
        picture.save(tmp_path / "p.png", transparency=0)
    else:
        picture = _photo().convert(mode[:-1])
        picture.putalpha(_mask())
        picture.save(tmp_path / "p.png")
    photo = load_photo(tmp_path / "p.png")
    pixels = np.asarray(photo.image)
    assert (pixels[0, 0] == 255).all() and not (pixels[30, 20] == 255).all()
    assert photo.alpha.getbbox() == BOX
    subject = _load(tmp_path)
    assert 0 < subject.masks.mean() < 0.5


def test_a_mask_file_beats_the_alpha_channel(tmp_path):
    picture = _photo()
    picture.putalpha(_mask(box=(0, 0, 90, 10)))
    picture.save(tmp_path / "p.png")
    (tmp_path / "masks").mkdir()
    _mask().save(tmp_path / "masks" / "p.png")
    masks = _load(tmp_path, resolution=60).masks
    assert masks[0, 0].nonzero().amin(0).tolist() == [20, 10]


def _turned(tmp_path, orientation=6):
    """A photo stored 60 x 90 and displayed 90 x 60."""
    _photo().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "p.png", exif=_exif(orientation))
    return load_photo(tmp_path / "p.png")


def test_masks_fit_the_photo_as_displayed_or_turn_with_its_raster(tmp_path):
    photo = _turned(tmp_path)
    assert photo.image.size == (90, 60) and photo.orientation == 6
    displayed, raster = _mask(), _mask().transpose(Image.Transpose.ROTATE_90)
    for scale in (1, 2):
        for mask in (displayed, raster):
            mask.resize((mask.width * scale, mask.height * scale), 0).save(tmp_path / "m.png")
            assert load_mask(tmp_path / "m.png", photo).getbbox() == BOX
    # a mask that carries the orientation itself
    raster.save(tmp_path / "m.png", exif=_exif(6))
    assert load_mask(tmp_path / "m.png", photo).getbbox() == BOX


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_raster_mask_covers_the_subject_for_every_quarter_turn(tmp_path, orientation):
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
        orientation, TURNS[orientation]
    )
    _photo().transpose(back).save(tmp_path / "p.png", exif=_exif(orientation))
    _mask().transpose(back).save(tmp_path / "m.png")
    photo = load_photo(tmp_path / "p.png")
    assert (np.asarray(load_mask(tmp_path / "m.png", photo)) > 0).tolist() == _is_red(
        photo.image
    ).tolist()


def test_in_a_nearly_square_photo_the_exact_size_decides(tmp_path):
    size, box = (400, 401), (10, 20, 60, 50)
    _photo(size, box).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "p.png", exif=_exif(6))
    _mask(size, box).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "m.png")
    assert load_mask(tmp_path / "m.png", load_photo(tmp_path / "p.png")).getbbox() == box


def test_a_mask_of_another_aspect_names_both_files(folder):
    _mask((90, 62)).save(folder / "masks" / "a.png")
    with pytest.raises(UserError, match=r"masks.a\.png is 90 x 62.*a\.png 90 x 60"):
        _load(folder)
    # rounding of a resize is not another aspect
    _mask((180, 121)).save(folder / "masks" / "a.png")
    _load(folder)
    # the raster's aspect is no excuse where the photo is not turned
    _mask((60, 90)).save(folder / "masks" / "a.png")
    with pytest.raises(UserError, match="another aspect"):
        _load(folder)


@pytest.mark.parametrize("level", [0, 1, 127])
def test_an_empty_mask_is_refused_and_named(folder, level):
    _mask().point(lambda grey: level if grey else 0).save(folder / "masks" / "b.png")
    _photo((90, 60)).save(folder / "b.png")
    with pytest.raises(UserError, match=rf"b\.png: the mask is empty .*{level} of 255"):
        _load(folder)


def test_a_wholly_transparent_photo_is_an_empty_mask(tmp_path):
    picture = _photo()
    picture.putalpha(0)
    picture.save(tmp_path / "p.png")
    with pytest.raises(UserError, match=r"p\.png: the mask is empty"):
        _load(tmp_path)


def test_a_mask_that_vanishes_at_the_resolution_is_refused(folder):
    _mask(box=(5, 5, 6, 6)).save(folder / "masks" / "a.png")
    with pytest.raises(UserError, match=r"a\.png: its mask vanishes at 8 pixels"):
        _load(folder, resolution=8)


def test_masks_for_some_photos_only_are_an_error_that_names_the_others(folder):
    (folder / "masks" / "b.png").unlink()
    with pytest.raises(UserError, match=r"no mask for b\.png"):
        _load(folder)


def test_masks_may_be_grey_or_cut_at_half(folder):
    grey = _mask()
    grey.paste(100, (0, 0, 5, 60))
    grey.paste(200, (5, 0, 10, 60))
    grey.save(folder / "masks" / "a.png")
    assert _load(folder).masks.unique().tolist() == [0, 1]
    assert _load(folder, resolution=60).masks[0, 0, 0, :12].tolist() == [0] * 5 + [1] * 5 + [0] * 2
    soft = _load(folder, resolution=60, binary_masks=False).masks[0, 0, 0]
    assert soft[2].item() == pytest.approx(100 / 255) and soft[7].item() == pytest.approx(200 / 255)


def test_another_mask_folder_and_suffix(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for name, size in (("a", (90, 60)), ("b", (60, 90))):
        _mask(size, (0, 0, 60, 60)).save(other / f"{name}.jpg", quality=100)
    assert (_load(folder, mask_dir=other).masks == 1).all()
    with pytest.raises(UserError, match=r"--mask_dir .*nowhere"):
        _load(folder, mask_dir=folder / "nowhere")


def test_no_masks_at_all_is_a_warning_and_the_whole_picture(tmp_path, caplog):
    for name, size in (("a", (90, 60)), ("b", (60, 90))):
        _photo(size).save(tmp_path / f"{name}.png")
    with caplog.at_level(logging.WARNING):
        subject = _load(tmp_path)
    assert (subject.masks == 1).all()
    assert [
        record for record in caplog.messages if "background is learned" in record
    ] == caplog.messages


def test_one_photo_is_enough_with_a_warning(folder, caplog):
    (folder / "b.png").unlink()
    assert len(_load(folder).images) == 1
    assert "one photo only" in caplog.text


def test_the_subject_has_the_promised_shapes_and_ranges(folder, caplog):
    subject = _load(folder)
    assert subject.images.shape == (2, 3, 32, 32) and subject.masks.shape == (2, 1, 32, 32)
    assert subject.images.dtype == subject.masks.dtype == torch.float32
    assert subject.images.min() == -1 and subject.images.max() == 1
    assert (subject.names, subject.class_word) == (("a.png", "b.png"), "box")
    assert not caplog.messages


def test_mask_and_picture_agree_after_loading(folder):
    subject = _load(folder, resolution=40)
    red = (subject.images[:, 0] > 0) & (subject.images[:, 2] < 0)
    assert (red == (subject.masks[:, 0] > 0)).float().mean() > 0.97


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (100, 100), (301, 100)])
@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_a_square_keeps_shapes_and_the_whole_subject(size, place):
    left, top = (round(place * (length - 40)) for length in size)
    box = (left, top, left + 40, top + 40)
    image, mask = square(_photo(size, box), _mask(size, box), 50)
    assert image.size == mask.size == (50, 50)
    left, top, right, bottom = mask.getbbox()
    # 40 of 100 pixels are 20 of 50 in both directions: nothing squashed, nothing lost
    assert (right - left, bottom - top) == (pytest.approx(20, abs=1), pytest.approx(20, abs=1))
    assert (_is_red(image) == (np.asarray(mask) > 127)).mean() > 0.97


def test_the_window_is_centred_on_the_subject_where_it_can_be():
    mask = square(_photo((300, 100), (130, 0, 150, 20)), _mask((300, 100), (130, 0, 150, 20)), 100)[
        1
    ]
    assert mask.getbbox() == (40, 0, 60, 20)


def _marked(side=64):
    """A red box on blue whose mask is the box, off the centre and not symmetric."""
    box = (side // 4, side // 8, side // 2, side * 3 // 4)
    image = (
        torch.from_numpy(np.asarray(_photo((side, side), box)).copy()).permute(2, 0, 1).float()
        / 127.5
        - 1
    )
    return image, torch.from_numpy(np.asarray(_mask((side, side), box)).copy())[None].float() / 255


def _grown(mask):
    return F.max_pool2d(mask[None], 3, 1, 1)[0]


def _generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["crop_rotate_flip", "scale"])
def test_augmentation_keeps_mask_and_image_together(kind):
    image, mask = _marked()
    for seed in range(40):
        moved, where = augment_reference(image, mask, kind, generator=_generator(seed))
        assert moved.shape == image.shape and where.shape == mask.shape
        assert moved.abs().max() <= 1 + 1e-5 and set(where.unique().tolist()) <= {0.0, 1.0}
        red = ((moved[0] > 0) & (moved[2] < 0)).float()[None]
        # apart by one pixel at most
        assert (red <= _grown(where)).all() and (where <= _grown(red)).all(), seed
        assert where.sum() > 0


@pytest.mark.parametrize("kind", ["crop_rotate_flip", "scale"])
def test_augmentation_is_decided_by_the_seed_alone(kind):
    image, mask = _marked()
    torch.manual_seed(1)
    first = augment_reference(image, mask, kind, generator=_generator(5))
    torch.manual_seed(2)
    again = augment_reference(image, mask, kind, generator=_generator(5))
    other = augment_reference(image, mask, kind, generator=_generator(6))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_what_each_kind_of_augmentation_does():
    image, mask = _marked()
    assert augment_reference(image, mask, "none", generator=_generator(0)) == (image, mask)
    shares = {"crop_rotate_flip": [], "scale": []}
    for kind, found in shares.items():
        for seed in range(60):
            moved, _ = augment_reference(image, mask, kind, generator=_generator(seed))
            found.append((moved.abs().amax(0) < 1e-3).float().mean().item())
    # "scale" pastes on mid-grey two times in three, down to a ninth of the area; the paper's kind
    # shows little
    shrunk = [share for share in shares["scale"] if share > 0]
    assert 0.45 < len(shrunk) / 60 < 0.85 and 0.75 < max(shrunk) < 8 / 9 + 0.03
    assert max(shares["crop_rotate_flip"]) < 0.6


def test_flips_and_turns_happen_in_the_papers_kind_only():
    # red left, blue right: a flip swaps them
    image = torch.ones(3, 64, 64) * torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    image[:, :, 32:] = torch.tensor([-1.0, -1.0, 1.0])[:, None, None]
    mask = torch.ones(1, 64, 64)

    def flipped(kind, seed):
        moved, _ = augment_reference(image, mask, kind, generator=_generator(seed))
        redness = (moved[0] - moved[2]).mean(0)  # by column
        return bool((redness * torch.linspace(-1, 1, 64)).sum() > 0)

    assert not any(flipped("scale", seed) for seed in range(30))
    assert 8 <= sum(flipped("crop_rotate_flip", seed) for seed in range(30)) <= 22

    def upright(kind, seed):  # all rows alike
        moved, _ = augment_reference(image, mask, kind, generator=_generator(seed))
        inner = moved[0, 24:40]
        return (inner - inner[:1]).abs().max() < 1e-4

    assert sum(upright("crop_rotate_flip", seed) for seed in range(20)) <= 3


@pytest.mark.parametrize("kind", ["crop_rotate_flip", "scale"])
def test_the_subject_never_leaves_the_frame(kind):
    image, _ = _marked()
    mask = torch.zeros(1, 64, 64)
    mask[:, :6, :6] = 1  # in the corner, where crops lose it
    for seed in range(200):
        _, where = augment_reference(image, mask, kind, generator=_generator(seed))
        assert where.sum() > 0, seed


def test_the_overlay_sheet_is_tinted_where_the_mask_is_and_only_there():
    image = torch.zeros(1, 3, 64, 64)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 8:24] = 1
    sheet = np.asarray(overlay_sheet(Subject(image, mask, ("grey.png",), "box"))).astype(int)
    cell = sheet[4:68, 4:68]
    tinted = cell[..., 0] - cell[..., 1] > 20
    inside = mask[0, 0].numpy() > 0
    assert tinted[inside].all()
    near = np.zeros_like(inside)
    near[15:49, 7:25] = True  # the outline
    assert not tinted[~near].any()
    assert (cell[0, 0] == cell[63, 63]).all() and abs(cell[0, 0] - 128).max() <= 1
    # the caption lies below
    assert (sheet[70:] < 100).any()


def test_a_sheet_has_a_cell_a_photo(folder):
    subject = _load(folder)
    single = overlay_sheet(Subject(subject.images[:1], subject.masks[:1], ("a.png",), "box"))
    assert overlay_sheet(subject).width > 1.8 * single.width


def test_a_grid_places_pictures_row_by_row_and_copes_with_any_caption():
    colours = ["red", "lime", "blue"]
    grid = image_grid([Image.new("RGB", (20, 10), colour) for colour in colours], columns=2)
    assert grid.getpixel((5, 5)) == (255, 0, 0) and grid.getpixel((30, 5)) == (0, 255, 0)
    assert grid.getpixel((5, 20)) == (0, 0, 255) and grid.getpixel((30, 20)) == (255, 255, 255)
    images = [Image.new("RGB", (60, 10), colour) for colour in colours]
    image_grid(images, columns=3, captions=["a very long caption that cannot fit", "猫の写真", ""])

    long, short = "a caption of several lines, such as previews have", "00.png"
    low, mixed, high = (
        image_grid(images[:2], columns=1, captions=captions).height
        for captions in ((short, short), (short, long), (long, long))
    )
    assert low < mixed < high  # a row is as high as its own captions
    assert mixed - low == high - mixed
    for arguments in (([], 2), (images, 0), (images, 2, ["one"])):
        with pytest.raises(ValueError, match="columns"):
            image_grid(*arguments)


def test_tensors_turn_into_pictures_and_back():
    levels = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    image = levels.repeat(3, 2, 1)
    assert np.asarray(to_pil(image))[0, :, 0].tolist() == list(range(256))
    assert np.asarray(to_pil(torch.full((3, 2, 2), 7.0))).min() == 255
