"""The settings of `make_masks.py`, and how much of a photo a mask may cover."""

import dataclasses
from typing import Literal

from eqdiff.settings.options import check_fields, opt

DETECTOR = "IDEA-Research/grounding-dino-tiny"
SEGMENTER = "facebook/sam2.1-hiera-small"
COVERAGE = (0.01, 0.95)  # share of its photo; a made mask outside this range is refused
DETECTOR_HELP = "GroundingDINO that finds the class word: folder or hub id"
SEGMENTER_HELP = "SAM 2 that cuts it out: folder or hub id"


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """Make masks of a subject's photos: masks/<photo stem>.png, and a sheet to check them by."""

    instance_data_dir: str | None = opt(None, "folder with the subject's photos")
    class_word: str | None = opt(
        None, "what the subject is, e.g. 'cat toy' (default: class.txt in the photo folder)"
    )
    mask_dir: str | None = opt(None, "where the masks go (default: masks/ in the photo folder)")
    mask_maker: Literal["auto", "models", "colours"] = opt(
        "auto",
        "models: GroundingDINO and SAM 2; colours: what comes with EqDiff, U2-Net-p and the "
        "colours that the photos share; auto: models if they can be loaded",
    )
    detector_model: str = opt(DETECTOR, DETECTOR_HELP)
    segmenter_model: str = opt(SEGMENTER, SEGMENTER_HELP)
    overwrite: bool = opt(
        False,
        "replace the masks that are there (never an alpha channel), "
        "and files of others at our names",
    )

    def __post_init__(self) -> None:
        check_fields(self)
