"""Class images: what is there stays, what is missing or torn is made again, many may draw."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import tiny_config
from PIL import Image, features

from eqdiff.base.load import Base, load_base
from eqdiff.errors import UserError
from eqdiff.ours import is_picture
from eqdiff.settings.train import TrainConfig
from eqdiff.training import build
from eqdiff.training import class_images as module
from eqdiff.training.class_images import cache_folder, class_captions, class_images
from eqdiff.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_caches")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


@pytest.fixture
def config(tiny_base: Path, tiny_subject: Path) -> TrainConfig:
    return tiny_config(tiny_base, tiny_subject, num_class_images=4)


def drawn(base: Base, config: TrainConfig, **changes: object) -> torch.Tensor:
    return class_images(base, dataclasses.replace(config, **changes), CPU, quiet=True)


def own(path: Path, shade: int = 100) -> None:
    """A picture of the user's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 70), (shade, 10, 10)).save(path)


def state_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- a folder of the user's ------------------------------------------------------------------------


def test_a_name_that_is_there_is_never_written(
    base: Base, config: TrainConfig, tmp_path: Path
) -> None:
    """Whatever lies there: a picture, an empty file, a link that leads nowhere, a folder."""
    folder = tmp_path / "mine"
    for number in (1, 2, 4):
        own(folder / f"{number:05d}.png", number)
    (folder / "00003.png").touch()
    (folder / "00005.png").symlink_to(tmp_path / "nowhere")
    (folder / "00006.PNG").mkdir()
    (folder / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    images = drawn(base, config, class_data_dir=str(folder), num_class_images=6)
    assert len(images) == 6
    assert {path: path.read_bytes() for path in before} == before
    new = {path.name for path in folder.iterdir() if is_picture(path)}
    assert new == {"00000.png", "00007.png", "00008.png"}

    again = drawn(base, config, class_data_dir=str(folder), num_class_images=6)
    assert torch.equal(again, images)


def test_pictures_of_every_kind_count_and_hidden_or_empty_files_do_not(
    base: Base, config: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    suffixes = ["bmp", "tif", "tiff", "JPG", "webp", "gif", "ppm"]
    suffixes += ["avif"] if features.check("avif") else []
    for place, suffix in enumerate(suffixes):
        own(folder / f"{place}.{suffix}", 20 * place)
    shutil.copy(folder / "0.bmp", folder / "0.png")  # of the same stem: no mask is shared here
    (folder / "._1.png").write_bytes(b"a desktop's")
    (folder / "empty.png").touch()
    before = state_of(folder)

    count = len(suffixes) + 1
    images = drawn(base, config, class_data_dir=str(folder), num_class_images=count)
    assert len(images) == count and state_of(folder) == before


def test_a_torn_picture_of_the_users_is_refused_by_name_and_one_of_ours_is_made_again(
    base: Base, config: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    own(folder / "dog.png")
    images = drawn(base, config, class_data_dir=str(folder))
    before = state_of(folder)
    ours = folder / "00001.png"
    ours.write_bytes(before[ours.name][:200])
    assert torch.equal(drawn(base, config, class_data_dir=str(folder)), images)
    assert state_of(folder) == before

    (folder / "dog.png").write_bytes(before["dog.png"][:60])
    torn = state_of(folder)
    with pytest.raises(UserError, match=r"mine/dog\.png: not readable"):
        drawn(base, config, class_data_dir=str(folder))
    assert state_of(folder) == torn


# -- the cache -------------------------------------------------------------------------------------


def test_what_is_missing_empty_or_torn_in_the_cache_is_made_again_and_nothing_else(
    base: Base, config: TrainConfig
) -> None:
    images = drawn(base, config)
    folder = cache_folder(base, config)
    before = state_of(folder)
    assert sorted(before) == [f"{number:05d}.png" for number in range(4)]

    (folder / "00000.png").unlink()
    (folder / "00001.png").write_bytes(b"")
    (folder / "00003.png").write_bytes(before["00003.png"][:-40])
    kept = (folder / "00002.png").stat().st_mtime_ns
    own(folder / "00000a.png")  # somebody's: it is no class image
    assert torch.equal(drawn(base, config), images)
    assert {name: content for name, content in state_of(folder).items() if name in before} == before
    assert (folder / "00002.png").stat().st_mtime_ns == kept


def test_fewer_images_are_the_first_ones_also_when_one_of_them_is_missing(
    base: Base, config: TrainConfig
) -> None:
    images = drawn(base, config)
    (cache_folder(base, config) / "00001.png").unlink()
    assert torch.equal(drawn(base, config, num_class_images=4)[:3], images[:3])
    (cache_folder(base, config) / "00001.png").unlink()
    assert len(drawn(base, config, num_class_images=3)) == 3
    assert (cache_folder(base, config) / "00001.png").exists()


@pytest.mark.slow
def test_many_trainings_may_fill_one_cold_cache_at_once(tmp_path: Path) -> None:
    """Also as containers on one disk do, whose processes all have the same number."""
    image = Image.effect_noise((256, 256), 90).convert("RGB")

    def fill(_: int) -> None:
        for number in range(30):
            module._write(image, tmp_path / f"{number % 3:05d}.png")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n:05d}.png" for n in range(3)]


def test_words_that_look_alike_in_a_file_name_have_caches_of_their_own(
    base: Base, config: TrainConfig
) -> None:
    words = ("cat toy", "cat_toy", "Bär", "Bör", "B_r", "a" * 50, "a" * 51)
    folders = [cache_folder(base, dataclasses.replace(config, class_word=word)) for word in words]
    assert len(set(folders)) == len(words)
    assert all(folder.name.isascii() for folder in folders)


def test_without_a_home_one_line_says_how_to_name_a_cache(
    base: Base, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EQDIFF_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="no home folder .* EQDIFF_CACHE=FOLDER"):
        drawn(base, config)


# -- captions of their own -------------------------------------------------------------------------


def prompts_in(folder: Path, *lines: str) -> str:
    """A prompt file of these lines."""
    path = folder / f"prompts{len(lines)}.txt"
    path.write_text("# of the class\n" + "\n".join(lines), encoding="utf-8")
    return str(path)


def test_class_images_are_drawn_by_the_lines_of_a_prompt_file_in_turn(
    base: Base, config: TrainConfig, tmp_path: Path
) -> None:
    usual = drawn(base, config)
    file = prompts_in(tmp_path, config.class_prompt, "a mosaic of a {}")
    images = drawn(base, config, class_prompts=file)
    assert torch.equal(images[::2], usual[::2]) and not torch.equal(images[1::2], usual[1::2])

    several = dataclasses.replace(config, class_prompts=file)
    folders = [cache_folder(base, each) for each in (config, several)]
    (folders[1] / "00001.png").unlink()
    assert folders[0] != folders[1]
    assert torch.equal(drawn(base, several), images)
    word = config.class_word
    assert class_captions(several) == (f"photo of a {word}", f"a mosaic of a {word}")


def test_the_trainer_trains_each_class_image_under_the_caption_it_was_drawn_by(
    tiny_base: Path, config: TrainConfig, tmp_path: Path
) -> None:
    file = prompts_in(tmp_path, "photo of a {}", "a mosaic of a {}", "{} in the snow")
    config = dataclasses.replace(config, class_prompts=file, output_dir=str(tmp_path / "out"))
    trainer = Trainer(config, Accelerator(cpu=True), load_base(str(tiny_base)))
    batch = trainer.draw(1)
    batch.class_image = torch.arange(len(batch.class_image)) + 1
    captions = [class_captions(config)[number % 3] for number in batch.class_image.tolist()]
    expected = trainer.model.encode_plain(captions)
    assert torch.allclose(trainer.objective.class_caption(batch), expected, atol=1e-6)
    assert len(trainer.objective.class_text) == 3

    fewer = dataclasses.replace(config, num_class_images=2)
    trainer = Trainer(fewer, Accelerator(cpu=True), load_base(str(tiny_base)))
    assert len(trainer.objective.class_text) == 2  # the third shows no image


def test_a_prompt_file_that_changes_while_they_are_drawn_changes_no_caption(
    tiny_base: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing may take an hour, in which somebody may edit the file."""
    file = prompts_in(tmp_path, "photo of a {}", "a mosaic of a {}")
    config = dataclasses.replace(config, class_prompts=file, output_dir=str(tmp_path / "out"))
    captions = class_captions(config)

    def drawn_meanwhile(*args: Any, **options: Any) -> torch.Tensor:
        images = class_images(*args, **options)
        Path(file).write_text("{} in the snow\n", encoding="utf-8")
        return images

    monkeypatch.setattr(build, "class_images", drawn_meanwhile)
    trainer = Trainer(config, Accelerator(cpu=True), load_base(str(tiny_base)))
    assert trainer.data.class_captions == captions != class_captions(config)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"class_data_dir": "mine"}, "not with --class_data_dir"),
        ({"with_prior_preservation": False}, "no class images are made here"),
        ({"prior_kind": "prediction"}, "no class images are made here"),
    ],
)
def test_prompts_that_no_class_image_is_drawn_by_are_refused(
    config: TrainConfig, flags: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=f"--class_prompts prompts.txt: {message}"):
        dataclasses.replace(config, class_prompts="prompts.txt", **flags)


def test_a_prompt_file_that_is_missing_or_names_the_subject_is_refused_by_name(
    base: Base, config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="nowhere.txt"):
        drawn(base, config, class_prompts=str(tmp_path / "nowhere.txt"))
    with pytest.raises(UserError, match=r"prompts1.txt, line 2 .*shows no subject"):
        drawn(base, config, class_prompts=prompts_in(tmp_path, "a <new1> in the snow"))
