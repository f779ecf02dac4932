"""The compressed file at Stable Diffusion 1.4's true sizes, written and read again.

51.6 M random weights, a made-up change of them (rank 8 and a little noise), and the latents of five
photos. `python -m studies.quality.compress --sd14` runs it.
"""

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import random_base
from eqdiff.base.load import Base
from eqdiff.concept.concept import Concept, References, capture_concept, model_for
from eqdiff.concept.file import compress_concept, load_concept, save_concept
from eqdiff.model import EqDiff, new_model
from eqdiff.settings.presets import preset_config

MEGABYTES = 15.0  # what a concept may take at Stable Diffusion 1.4's sizes
NUMBERS = 51_550_000  # of the concept there, see `python -m benchmarks.sd14 --counts_only`
RATIO = MEGABYTES * 1e6 / (4 * NUMBERS)
PHOTOS = 5
RANK = 8  # of the made-up change


@torch.no_grad()
def change(model: EqDiff) -> None:
    """Adds to every matrix a change of RANK and, a tenth as large, noise of full rank."""
    for weight in model.concept_parameters().values():
        if weight.ndim == 2:
            rows, columns = weight.shape
            low = torch.randn(rows, RANK) @ torch.randn(RANK, columns) / RANK**0.5
            weight += 2e-3 * low + 2e-4 * torch.randn(rows, columns)


def made_up_concept(base: Base) -> tuple[EqDiff, Concept]:
    """A model with changed weights, and its concept with references of noise."""
    config = preset_config("paper", class_word="mug")
    model = new_model(config, base)
    change(model)

    noise = torch.randn(1, 4, 64, 64)
    latents = torch.randn(PHOTOS, 4, 64, 64)
    names = tuple(f"{number}.jpg" for number in range(PHOTOS))
    references = References(latents, torch.ones(PHOTOS, 1, 64, 64), noise, names)
    return model, capture_concept(model, references, dataclasses.asdict(config), 600)


def saved(concept: Concept, file: Path, dtype: str) -> int:
    """Writes a concept; the file's size [bytes]."""
    save_concept(concept, file, dtype=dtype)
    return file.stat().st_size


def distance(rebuilt: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The root mean square of the differences between weights of the same names."""
    errors = [(rebuilt[name].detach() - weight).square().sum() for name, weight in expected.items()]
    return math.sqrt(float(sum(errors)) / sum(weight.numel() for weight in expected.values()))


def measure_file() -> dict[str, Any]:
    """What a compressed file takes, and how far its weights are from the uncompressed ones."""
    base = random_base()
    model, concept = made_up_concept(base)
    started = time.monotonic()
    small = compress_concept(concept, model, MEGABYTES)
    seconds = time.monotonic() - started
    expected = {name: p.detach().clone() for name, p in model.concept_parameters().items()}
    model.detach()
    del model

    with tempfile.TemporaryDirectory() as folder:
        full_bytes = saved(concept, Path(folder) / "fp32.safetensors", "fp32")
        file = Path(folder) / "compressed.safetensors"
        small_bytes = saved(small, file, "fp16")
        rebuilt = model_for(load_concept(file), base).concept_parameters()

    ranks = sorted(x.shape[1] for name, x in small.parameters.items() if name.endswith(".up"))
    return {
        "numbers": sum(weight.numel() for weight in expected.values()),
        "bytes_fp32": full_bytes,
        "bytes_compressed": small_bytes,
        "within": small_bytes <= MEGABYTES * 1e6,
        "matrices": len(ranks),
        "ranks": [ranks[0], ranks[len(ranks) // 2], ranks[-1]],
        "root_mean_square_error": distance(rebuilt, expected),
        "seconds_to_compress": seconds,
    }
