"""The settings of `eval_eqdiff.py`."""

import dataclasses

from eqdiff.errors import require
from eqdiff.settings.options import check_fields, opt

CLIP_MODEL = "openai/clip-vit-base-patch32"
DINO_MODEL = "facebook/dino-vits16"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Measure drawn pictures against prompts and the subject's photos: CLIP-T, CLIP-I, DINO-I."""

    samples: tuple[str, ...] = opt(
        (), "folders that test_eqdiff.py wrote (default: the newest outputs/*/samples)"
    )
    instance_data_dir: str | None = opt(
        None, "the subject's photos (default: those that the concept was trained on)"
    )
    class_word: str | None = opt(None, "what the subject is (default: as the concept was trained)")
    clip_model: str | None = opt(
        None, f"CLIP, folder or hub id (default: {CLIP_MODEL}; on the toybox base its own)"
    )
    dino_model: str | None = opt(
        None, f"ViT by DINO, folder or hub id (default: {DINO_MODEL}; likewise)"
    )
    latent_fisher: int = opt(
        0,
        "pictures a prompt for the latent Fisher divergence, how much the concept changes other "
        "prompts (our definition); 0: not measured",
        0,
        10_000,
    )
    wasserstein: bool = opt(
        False,
        "measure W2 to the base's pictures of the class, by mean and trace (our definition); the "
        "base draws each picture twice",
    )
    pick: bool = opt(
        False,
        "the folders are checkpoints of one subject: draw the curve of the metrics, name the best",
    )
    json: str | None = opt(None, "write the figures of all folders there too")
    overwrite: bool = opt(
        False, "replace a metrics.json or curve.png of others that lies at the place of ours"
    )
    batch_size: int = opt(32, "pictures looked at together", 1)

    def __post_init__(self) -> None:
        check_fields(self)
        several = len(self.samples) > 1
        require(several or not self.pick, "--pick: name two or more folders with --samples")
