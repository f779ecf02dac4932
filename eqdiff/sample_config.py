"""The settings of drawing: what `test_eqdiff.py` is asked."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

from eqdiff.config import BASE_HELP, UserError
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
    instance_data_dir: str | None = opt(None, "photos to attend to, for a concept that carries none, or instead of its")
    mask_dir: str | None = opt(None, "folder with <photo stem>.png masks (default: masks/ in the photo folder)")
    num_references: int | None = opt(
        None, "photos to attend to, side by side: that one and those after it (default: as trained)", 1, 16
    )
    rra: bool = opt(True, "attend to the reference")
    attention_window: tuple[float, float] = opt(
        (0.0, 1.0), "do so from here to there [share of the steps]", 0, 1, metavar=("FROM", "TO")
    )
    reference_for: Literal["both", "conditional"] = opt("both", "halves of guidance that attend to the reference")
    reference_cache_gb: float = opt(
        2.0, "GPU memory for the reference's features; beyond it pinned memory; 0: computed at every step", 0
    )
    safety_checker: bool = opt(True, "blur what the base's own safety checker flags, if it has one")
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


class Job(NamedTuple):
    """One image to draw: its place in the list, its prompt, which image of that prompt it is."""

    index: int
    prompt: str
    number: int

    @property
    def file(self) -> str:
        """A name of its own, at most 90 characters of ASCII, whatever the prompt holds."""
        words = "".join(c if c.isascii() and c.isalnum() else "-" for c in self.prompt.replace("{}", "S"))
        return f"{self.index:04d}-{'-'.join(filter(None, words.split('-')))[:60]}-{self.number}.png"


def find_concept(named: str | None) -> Path:
    """The concept file: the one named, that of the folder named, else the newest under outputs/."""
    if named is not None:
        return Path(named) / "concept.safetensors" if Path(named).is_dir() else Path(named)
    found = sorted(Path("outputs").glob("*/concept.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError("no concept under outputs/; train one with: bash scripts/train.sh, or name one with --concept")
    return found[-1]
