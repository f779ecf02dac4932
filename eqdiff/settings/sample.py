"""The settings of `test_eqdiff.py`, the images that they ask for, and which concept is drawn."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from eqdiff.errors import UserError, require
from eqdiff.settings.groups import Recipe
from eqdiff.settings.options import HUGE, Role, check_fields, opt
from eqdiff.settings.places import ASSETS, BASE_HELP, is_bundled
from eqdiff.settings.prompts import read_prompts, require_places, require_slot, require_text
from eqdiff.settings.sampling import (
    AlignITSettings,
    DciSettings,
    DreamMatcherSettings,
    FreeCustomSettings,
    require_switches,
)

STRONGEST = 4.0  # factor on RRA's gates; a gate is at most 1 whatever the factor


@dataclasses.dataclass(frozen=True)
class SampleConfig(DciSettings, DreamMatcherSettings, FreeCustomSettings, AlignITSettings):
    """Draw a learned subject: concept file and prompts -> images, grid and manifest."""

    concept: tuple[str, ...] = opt(
        (),
        "concept file (default: the newest under outputs/); several of --method infusion are drawn "
        "together, where prompts say {1}, {2} or {folder}",
        role=Role.FIRST,
    )
    pretrained_model_name_or_path: str | None = opt(None, BASE_HELP, role=Role.FIRST)
    prompts: str | None = opt(
        None,
        "prompt file: a line a prompt, # comments (default: a bundled one)",
        role=Role.FIRST,
    )
    prompt: tuple[str, ...] = opt((), "prompts given here; {} is the subject", role=Role.FIRST)
    negative_prompt: str | None = opt(
        None, "what guidance leads away from, in all pictures (default: the empty prompt)"
    )
    num_images_per_prompt: int = opt(1, "images a prompt", 1, 100_000, role=Role.FIRST)
    height: int | None = opt(
        None, "of the pictures [pixels, a multiple of 8] (default: as trained)", 32, 4096
    )
    width: int | None = opt(
        None, "of the pictures [pixels, a multiple of 8] (default: as trained)", 32, 4096
    )
    num_inference_steps: int | None = opt(None, "denoising steps (default: the concept's)", 1, 1000)
    guidance_scale: float | None = opt(
        None, "classifier-free guidance (default: the concept's)", 0, 100
    )
    guidance_rescale: float = opt(
        0.0,
        "bring guidance's contrast back to that of the conditional half by this share (phi of Lin "
        "et al. 2024); 0: off",
        0,
        1,
    )
    scheduler: Literal["ddim", "dpm++", "unipc"] = opt("ddim", "sampler")
    batch_size: int = opt(8, "images denoised together", 1)
    reference: str | None = opt(None, "photo to attend to (default: the concept's first)")
    instance_data_dir: str | None = opt(
        None, "photos to attend to, for a concept that carries none, or instead of its"
    )
    mask_dir: str | None = opt(
        None, "folder with <photo stem>.png masks (default: masks/ in the photo folder)"
    )
    num_references: int | None = opt(
        None,
        "photos to attend to, side by side: that one and those after it (default: as trained)",
        1,
        16,
    )
    rra: bool = opt(True, "attend to the reference")
    attention_window: tuple[float, float] = opt(
        (0.0, 1.0), "do so from here to there [share of the steps]", 0, 1, metavar=("FROM", "TO")
    )
    reference_for: Literal["both", "conditional"] = opt(
        "both", "halves of guidance that attend to the reference"
    )
    reference_strength: float = opt(
        1.0,
        "ours: a factor on the gates of reference attention; 1: as trained; 0: as --no-rra; more: "
        "more of the photo",
        0,
        STRONGEST,
    )
    reference_cache_gb: float = opt(
        2.0,
        "GPU memory for the reference's features; beyond it pinned memory; "
        "0: computed at every step",
        0,
    )
    safety_checker: bool = opt(True, "blur what the base's own safety checker flags, if it has one")
    compile: bool = opt(
        False, "compile the transformer blocks: minutes at the start, for many images on a GPU"
    )
    seed: int = opt(
        0, "seed; each image's noise depends on this, its prompt and its number alone", 0, HUGE
    )
    output_dir: str | None = opt(
        None, "where the results go (default: samples/ beside the concept)", role=Role.FIRST
    )
    gallery: bool = opt(True, "write gallery.html, a page of the pictures that needs no server")
    overwrite: bool = opt(False, "replace files of others that lie at the names of ours")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = opt(
        None, "default: bf16 on GPUs that have it, else no"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        self.check_noun()
        self.check_masks()
        self.check_alone()
        require_switches(self)
        if len(self.concept) < 2:  # of several, `jobs_of` knows the names
            for prompt in self.prompt:
                require_slot("--prompt", prompt)
        if self.negative_prompt is not None:
            require_text("--negative_prompt", self.negative_prompt)
        for name in ("height", "width"):
            side = getattr(self, name) or 0
            require(side % 8 == 0, f"--{name} {side}: must be a multiple of 8")

        flag = f"--reference_strength {self.reference_strength:g}"
        require(self.rra or self.reference_strength == 1, f"{flag}: not with --no-rra")

        start, stop = self.attention_window
        flag = f"--attention_window {start:g} {stop:g}"
        require(start <= stop, f"{flag}: must not end before it starts")

    def steps(self, recipe: Recipe) -> int:
        """Denoising steps; where they are left open the concept's recipe decides."""
        return self.num_inference_steps or recipe.num_inference_steps

    def guidance(self, recipe: Recipe) -> float:
        """The guidance scale; likewise."""
        return recipe.guidance_scale if self.guidance_scale is None else self.guidance_scale


class Job(NamedTuple):
    """One image to draw.

    index: its place in the list. prompt: its text. number: which image of that prompt it is.
    """

    index: int
    prompt: str
    number: int

    @property
    def file(self) -> str:
        """The image's file name: unique, at most 90 characters, ASCII whatever the prompt holds."""
        prompt = self.prompt.replace("{}", "S")
        words = "".join(c if c.isascii() and c.isalnum() else "-" for c in prompt)
        slug = "-".join(filter(None, words.split("-")))[:60]
        return f"{self.index:04d}-{slug}-{self.number}.png"


def find_concept(named: str | None) -> Path:
    """The concept file: the one named, that of the folder named, else the newest under outputs/.

    Raises UserError if none is named and there is none under outputs/.
    """
    if named is not None:
        return Path(named) / "concept.safetensors" if Path(named).is_dir() else Path(named)

    files = Path("outputs").glob("*/concept.safetensors")
    oldest_first = sorted(files, key=lambda path: path.stat().st_mtime)
    if not oldest_first:
        raise UserError(
            "no concept under outputs/; train one with: bash scripts/train.sh, "
            "or name one with --concept"
        )
    return oldest_first[-1]


def find_concepts(named: Sequence[str]) -> list[Path]:
    """The concept files named, see `find_concept`; without a name the newest under outputs/."""
    return [find_concept(name) for name in named] or [find_concept(None)]


def name_of(concept: Path) -> str:
    """What a concept file is called: as the folder of its training, else as the file."""
    named = concept.name == "concept.safetensors"
    return concept.resolve().parent.name if named else concept.stem


def samples_folder(concepts: Sequence[Path]) -> Path:
    """Where pictures of these concept files go, unless the settings say so."""
    first = concepts[0].parent
    if len(concepts) == 1:
        return first / "samples"
    return first.parent / "+".join(map(name_of, concepts)) / "samples"


def jobs_of(config: SampleConfig, base: str, names: Sequence[str] = ()) -> list[Job]:
    """Every image to draw, in order: the prompts of the file, then those of --prompt.

    base: its prompt file is the default if no prompts are given. names: of the concepts, if there
    are several; prompts then say which. Raises UserError if one does not.
    """
    check = require_slot
    if len(names) > 1:
        given = config.prompt or config.prompts
        require(given, "several concepts: give --prompt or --prompts, with {1} and {2} in them")
        check = partial(require_places, names=names)

    default = ASSETS / "prompts" / ("toybox.txt" if is_bundled(base) else "style.txt")
    for prompt in config.prompt:
        check("--prompt", prompt)
    if config.prompt and not config.prompts:
        prompts = config.prompt
    else:
        prompts = (*read_prompts(config.prompts or default, check), *config.prompt)

    numbers = range(config.num_images_per_prompt)
    pairs = [(prompt, number) for prompt in prompts for number in numbers]
    return [Job(index, prompt, number) for index, (prompt, number) in enumerate(pairs)]
