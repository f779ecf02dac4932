"""Make masks of a subject's photos from its class word: masks/<photo stem>.png, and a sheet to check them by.

python make_masks.py --instance_data_dir photos/mug --class_word mug [--help]
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from eqdiff.config import find_class_word, main_guard, parse
from eqdiff.mask_config import MaskConfig
from eqdiff.options import require


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(MaskConfig, argv)
    require(config.instance_data_dir, "no photos named: bash scripts/masks.sh SUBJECT_DIR CLASS_WORD")
    folder = Path(config.instance_data_dir)
    require(folder.is_dir(), f"--instance_data_dir {folder}: there is no such folder; name the one with the photos")
    word = find_class_word(folder, config.class_word)
    import torch

    from eqdiff.mask_maker import SHEET, make_masks

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    into = Path(config.mask_dir or folder / "masks")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = make_masks(folder, config, into, word=word, given=() if config.overwrite else (into,), device=device)
    if made:
        print(f"done: {len(made)} masks in {into}; look at {into / SHEET}")
    else:
        print(f"nothing to do: every photo in {folder} has a mask; --overwrite makes new ones")


if __name__ == "__main__":
    main(sys.argv[1:])
