"""The settings of drawing: what `test_eqdiff.py` is asked."""

import dataclasses
from typing import Literal

from eqdiff.config import BASE_HELP
from eqdiff.options import HUGE, check_fields, opt, require
from eqdiff.prompts import require_slot


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Draw a learned subject: concept file and prompts -> images, grid and manifest."""

    concept: str | None = opt(None, "concept file (default: the newest under outputs/)")
    pretrained_model_name_or_path: str | None = opt(None, BASE_HELP)
    prompts: str | None = opt(None, "prompt file: a line a prompt, # comments (default: a bundled one)")
    prompt: tuple[str, ...] = opt((), "prompts given here; {} is the subject")
    num_images_per_prompt: int = opt(1, "images a prompt", 1, 100_000)
    num_inference_steps: int | None = opt(None, "denoising steps (default: the concept's)", 1, 1000)
    guidance_scale: float | None = opt(None, "classifier-free guidance (default: the concept's)", 0, 100)
    scheduler: Literal["ddim", "dpm++", "unipc"] = opt("ddim", "sampler")
    batch_size: int = opt(8, "images denoised together", 1)
    reference: str | None = opt(None, "photo to attend to (default: the concept's first)")
    rra: bool = opt(True, "attend to the reference")
    attention_window: tuple[float, float] = opt(
        (0.0, 1.0), "do so from here to there [share of the steps]", 0, 1, metavar=("FROM", "TO")
    )
    reference_for: Literal["both", "conditional"] = opt("both", "halves of guidance that attend to the reference")
    reference_cache_gb: float = opt(
        2.0, "GPU memory for the reference's features; beyond it pinned memory; 0: computed at every step", 0
    )
    compile: bool = opt(False, "compile the transformer blocks: minutes at the start, for many images on a GPU")
    seed: int = opt(0, "seed; each image's noise depends on this, its prompt and its number alone", 0, HUGE)
    output_dir: str | None = opt(None, "where the results go (default: samples/ beside the concept)")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = opt(None, "default: bf16 on GPUs that have it, else no")

    def __post_init__(self) -> None:
        check_fields(self)
        for prompt in self.prompt:
            require_slot("--prompt", prompt)
        start, stop = self.attention_window
        require(start <= stop, f"--attention_window {start:g} {stop:g}: must not end before it starts")
