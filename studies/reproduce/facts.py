"""What is known of a cell's concept beside its pictures: how much is trained, what the base loses.

Its drift is the latent Fisher divergence of `eqdiff/evaluation/divergence.py`: how far the concept
moves what the base does with prompts that do not name the subject.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from eqdiff.base.load import load_base
from eqdiff.evaluation.divergence import latent_fisher, rings_of
from eqdiff.evaluation.run import NOUNS
from eqdiff.pipeline import EqDiffPipeline
from toybox.instances import CLASS_NAMES

PICTURES = 1  # of each of the prompts that the drift is measured on
REFERENCE = "reference."  # tensors of the file that no training made


def facts_of(base: str, is_toybox: bool, class_word: str, concept: Path) -> dict[str, Any]:
    """{"numbers": trained numbers, "drift": ring -> {"eps", "score"}} of a concept file.

    Raises UserError if base or concept cannot be loaded.
    """
    others = CLASS_NAMES if is_toybox else NOUNS
    pipe = EqDiffPipeline.of(load_base(base))
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.load_concept(str(concept))
    rings = rings_of(class_word, others)
    return {"numbers": numbers_in(concept), "drift": latent_fisher(pipe, rings, PICTURES)}


def numbers_in(concept: Path) -> int:
    """How many numbers a concept file has learned; its references are the photos' own."""
    with safe_open(concept, "pt") as file:
        names = [name for name in file.keys() if not name.startswith(REFERENCE)]  # noqa: SIM118
        shapes = [file.get_slice(name).get_shape() for name in names]
    return sum(torch.Size(shape).numel() for shape in shapes)
