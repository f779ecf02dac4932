"""Class images for prior preservation. The base itself makes them, once per base and class.

They lie in a folder of the cache, which is ours, or in a folder that the user names. There the
user's own pictures count too, and nothing takes the name of a file that is there.
"""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from eqdiff.base.load import Base
from eqdiff.base.schedule import require_steps, sampler
from eqdiff.data.folder import load_photo, pictures_in
from eqdiff.data.sheets import to_pil
from eqdiff.data.subject import square
from eqdiff.data.vae import cache_root
from eqdiff.errors import UserError, require
from eqdiff.files import replacing
from eqdiff.ours import is_picture, save_picture
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.settings.prompts import read_prompts, require_no_subject, shown
from eqdiff.settings.train import TrainConfig
from eqdiff.tokens import require_rows

LOG = logging.getLogger(__name__)
BATCH = 8
BLACK = 1 / 255  # what is no brighter in any pixel is black
NAME = re.compile(r"\d{5,}\.png")  # of the pictures that we make


def cache_folder(base: Base, config: TrainConfig) -> Path:
    """The folder of these class images under the cache's root.

    Its name holds the class word, the base's fingerprint, and a key of all that they are made
    with: the settings, and the base's weights, noise schedule and tokenizer.
    """
    identity = base.identity
    spacing = base.scheduler.config.get("timestep_spacing")
    made_with = (
        (identity.weights, identity.prediction, identity.tokenizer, spacing),
        [f"{value:.4f}" for value in identity.alpha_bar],
        config.class_prompt,
        config.class_inference_steps,
        config.class_guidance_scale,
        config.resolution,
    )
    # folders without these keep the names that they have
    if config.class_scheduler != "ddim":
        made_with += ("scheduler", config.class_scheduler)
    if config.class_prompts:
        made_with += ("prompts", class_captions(config))
    word = config.class_word or ""
    # ASCII: a system without UTF-8 has no other names
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in word)[:40]
    key = hashlib.sha256(repr(made_with if plain == word else (*made_with, word)).encode())
    return cache_root() / "class_images" / f"{plain}-{base.fingerprint}-{key.hexdigest()[:8]}"


def class_captions(config: TrainConfig) -> tuple[str, ...]:
    """What class images show: image i has caption i modulo their number.

    Raises UserError if the prompt file cannot be used.
    """
    prompts: tuple[str, ...] = (config.class_prompt,)
    if config.class_prompts:
        prompts = read_prompts(config.class_prompts, require_no_subject)
    return tuple(prompt.replace("{}", config.class_word or "") for prompt in prompts)


def class_images(
    base: Base, config: TrainConfig, device: torch.device, *, quiet: bool = False
) -> Tensor:
    """`num_class_images` pictures of the class (m,3,R,R) in [-1,1].

    Pictures that are missing, and those of ours that cannot be read, are generated first; the base
    is on `device` meanwhile.

    Raises UserError if the folder cannot be used, a picture of the user's cannot be read, the
    sampler cannot do what the base's schedule asks for, or the base draws none that can be kept.
    """
    named = config.class_data_dir
    folder = Path(named) if named else cache_folder(base, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = pictures_in(folder)
    except OSError as error:
        raise UserError(
            f"class images in {folder}: {error.strerror}; give another --class_data_dir"
        ) from None

    users = bool(named)
    files = _wanted(folder, present, config.num_class_images, users=users)
    images = {path: _load_whole(path, config.resolution, users=users) for path in files}
    missing = [path for path in files if images[path] is None]

    if missing:
        if users and present:
            LOG.warning("%s: %d class images are added by the base", folder, len(missing))
        scheduler = sampler(config.class_scheduler, base.scheduler.config)
        pipe = EqDiffPipeline.of(base, scheduler).to(device)
        _generate(pipe, config, missing, quiet=quiet)
        pipe.to("cpu")
        images |= {path: _load(path, config.resolution) for path in missing}

    return torch.stack(list(images.values()))


def _wanted(folder: Path, present: list[Path], count: int, *, users: bool) -> list[Path]:
    """The files of `count` class images, in the order of their names, whether there or not.

    In the cache they are the first numbers. In a folder of the user's they are the pictures that
    are there, and free numbers as far as those are too few.
    """
    if not users:
        return [folder / _name(number) for number in range(count)]

    files = present[:count]
    names = {path.name.lower() for path in folder.iterdir()}
    number = 0
    while len(files) < count:
        if _name(number) not in names:
            files.append(folder / _name(number))
        number += 1
    return sorted(files)


def _name(number: int) -> str:
    """The file name of a picture that we make: see NAME."""
    return f"{number:05d}.png"


def _load_whole(path: Path, resolution: int, *, users: bool) -> Tensor | None:
    """A picture as `_load` gives it. None: it is missing, or one of ours that is to be made again.

    users: the folder is the user's, where a picture is ours by its name and mark.

    Raises UserError that names a picture of the user's that cannot be read.
    """
    if not os.path.lexists(path):
        return None
    try:
        return _load(path, resolution)
    except UserError:
        if users and not (NAME.fullmatch(path.name) and is_picture(path)):
            raise
        return None


def _load(path: Path, resolution: int) -> Tensor:
    """A picture as a square (3,R,R) in [-1,1]."""
    image = load_photo(path, enough=2 * resolution).image
    cut, _ = square(image, None, resolution)
    return tv.pil_to_tensor(cut).float() / 127.5 - 1


@torch.no_grad()
def _generate(
    pipe: EqDiffPipeline, config: TrainConfig, paths: Sequence[Path], *, quiet: bool
) -> None:
    """Writes the pictures that these paths name by their numbers."""
    captions = class_captions(config)
    require_steps(pipe.scheduler, config.class_inference_steps, "--class_inference_steps")
    for caption in captions:
        ids = pipe.tokenizer([caption], return_tensors="pt").input_ids
        require_rows(pipe.tokenizer, pipe.text_encoder, ids)
    missing = {int(path.stem): path for path in paths}
    torn = {path for path in paths if os.path.lexists(path)}
    stop = max(config.num_class_images, max(missing) + 1)

    with tqdm(total=len(missing), desc="class images", unit="image", disable=quiet) as bar:
        # always whole batches, so that an image does not depend on which others already exist
        for start in sorted({number - number % BATCH for number in missing}):
            numbers = range(start, min(start + BATCH, stop))
            prompts = [captions[number % len(captions)] for number in numbers]
            seeds = [
                seed_of(config.seed, prompt, number)
                for prompt, number in zip(prompts, numbers, strict=True)
            ]
            images = pipe(
                prompts,
                seeds=seeds,
                num_inference_steps=config.class_inference_steps,
                guidance_scale=config.class_guidance_scale,
                height=config.resolution,
                width=config.resolution,
                output_type="pt",
            ).images

            drawn = zip(numbers, prompts, images, strict=True)
            new = [(missing[n], prompt, image) for n, prompt, image in drawn if n in missing]
            for path, prompt, image in new:
                require_picture(image, prompt)
                # another training, or the user, may have put one there meanwhile
                if path in torn or not os.path.lexists(path):
                    _write(to_pil(image * 2 - 1), path)
            bar.update(len(new))


def require_picture(image: Tensor, prompt: str) -> None:
    """Raises UserError if a drawn picture (3,R,R) in [0,1] is black: it would be kept for good."""
    require(
        bool((image > BLACK).any()),
        f"the base draws nothing but black for {shown(prompt)}: no class image is kept; "
        "look at the base, its VAE and its scheduler_config.json, or set --class_data_dir",
    )


def _write(image: Image.Image, path: Path) -> None:
    with replacing(path, shared=True) as beside:
        save_picture(image, beside)
