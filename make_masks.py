"""Make masks of a subject's photos from its class word: masks/<photo stem>.png, and a sheet.

python make_masks.py --instance_data_dir photos/mug --class_word mug [--help]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import eqdiff.process.early  # noqa: F401  first: for Ctrl-C while the rest is imported
from eqdiff.errors import main_guard, require
from eqdiff.settings.masks import MaskConfig
from eqdiff.settings.places import find_class_word
from eqdiff.settings.presets import parse
from eqdiff.wording import say, start_logging


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(MaskConfig, argv)
    require(
        config.instance_data_dir,
        "no photos named: bash scripts/masks.sh SUBJECT_DIR CLASS_WORD",
    )
    photos = Path(config.instance_data_dir)
    require(
        photos.is_dir(),
        f"--instance_data_dir {photos}: there is no such folder; name the one with the photos",
    )
    word = find_class_word(photos, config.class_word)
    folder = Path(config.mask_dir or photos / "masks")

    # torch takes seconds: only once the settings are right
    from eqdiff.masks.make import SHEET, default_device, make_masks

    start_logging()
    present = () if config.overwrite else (folder,)
    made = make_masks(photos, config, folder, word=word, given=present, device=default_device())
    if made:
        masks = "1 mask" if len(made) == 1 else f"{len(made)} masks"
        say(f"done: {masks} in {folder}; look at {folder / SHEET}")
    else:
        say(f"nothing to do: every photo in {photos} has a mask; --overwrite makes new ones")


if __name__ == "__main__":
    main(sys.argv[1:])
