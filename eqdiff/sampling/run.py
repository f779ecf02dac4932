"""A sampling run: the pipeline with the subject in it, and this process's share of the images."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from PIL import Image
from tqdm import tqdm

from eqdiff.base.compiled import compile_blocks
from eqdiff.base.load import PRECISIONS, Base, default_precision, load_base
from eqdiff.base.schedule import require_steps, sampler
from eqdiff.concept.concept import Concept
from eqdiff.concept.several import load_together
from eqdiff.errors import UserError
from eqdiff.gallery.page import write_beside
from eqdiff.pipeline import EqDiffPipeline, seed_of
from eqdiff.processes import join_processes
from eqdiff.sampling.draw_settings import DrawSettings
from eqdiff.sampling.folder import GRID, MANIFEST, finish, save_image
from eqdiff.sampling.options import option_facts, options_of
from eqdiff.sampling.references import photo_references
from eqdiff.sampling.safety import SafetyChecker, blurred, load_safety_checker
from eqdiff.settings.places import told_path
from eqdiff.settings.sample import Job, SampleConfig
from eqdiff.wording import start_logging

LOG = logging.getLogger(__name__)
LESS_MEMORY = "--batch_size 1, --reference_cache_gb 0, or --num_references 1"


def start_processes() -> Accelerator:
    """The processes of this run. Only the main one logs warnings, so that each is printed once.

    Raises UserError if not all of them run together.
    """
    accelerator = join_processes()
    level = logging.WARNING if accelerator.is_main_process else logging.ERROR
    start_logging(level)
    return accelerator


def read_concept(config: SampleConfig, paths: Sequence[Path]) -> Concept:
    """The concept in a file, or several as one, see `several.together`.

    Raises UserError if a file holds none, if they cannot be drawn together, or if the images are to
    attend to photos and there are none.
    """
    concept = load_together(paths)
    attend = config.rra and concept.recipe.rra
    if attend and not (concept.references.names or config.instance_data_dir):
        raise UserError(
            f"{paths[0]}: it carries no photos to attend to; "
            "give them with --instance_data_dir DIR, or draw with --no-rra"
        )
    return concept


def with_photos(
    config: SampleConfig, concept: Concept, made_masks: Path, base: Base, device: torch.device
) -> Concept:
    """The concept with the photos that the settings name, else with its own.

    made_masks: a folder of masks that the concept's training left.

    Raises UserError if the named photos cannot be used.
    """
    if not config.instance_data_dir:
        return concept
    base.vae.to(device)
    return photo_references(concept, base, config.instance_data_dir, config.mask_dir, made_masks)


def build_run(
    config: SampleConfig,
    concept: Concept,
    base_name: str,
    made_masks: Path,
    accelerator: Accelerator,
) -> "Run":
    """A run on the named base, with the photos that the settings name.

    made_masks: a folder of masks that the concept's training left.

    Raises UserError if the base or the photos cannot be used, or the concept is of another base.
    """
    base = load_base(base_name)
    concept = with_photos(config, concept, made_masks, base, accelerator.device)
    return Run(config, concept, base, accelerator)


class Run:
    """The pipeline of one process, which generates its share of the images."""

    def __init__(
        self, config: SampleConfig, concept: Concept, base: Base, accelerator: Accelerator
    ) -> None:
        """Raises UserError if the concept is of another base, or lacks what the settings name."""
        self.config = config
        self.accelerator = accelerator
        self.settings = DrawSettings.of(config, concept)
        self.options = options_of(config)
        # in each line of the manifest
        self.facts: dict[str, Any] = self.settings.facts | option_facts(self.options)

        self.pipe = _pipeline(config, concept, base, accelerator.device)
        self.checker = self._load_checker(base.name)

        if self.settings.negative_prompt and self.settings.guidance <= 1:
            LOG.warning("--negative_prompt: nothing leads away from it at --guidance_scale 1 or 0")

        number = self.settings.reference_number
        self.photos: tuple[int, ...] = (number,)
        if self.settings.rra or (config.freecustom and concept.references.names):
            self.photos = self.pipe.chosen(number, config.num_references)

    def _load_checker(self, base: str) -> SafetyChecker | None:
        """The base's safety checker; None if it has none or the settings turn it off."""
        if not self.config.safety_checker:
            return None
        return load_safety_checker(base, self.pipe.device, self.pipe.unet.dtype)

    def require_drawable(self, jobs: Sequence[Job]) -> None:
        """Warns about prompts that are too long. Raises UserError if one cannot be drawn."""
        prompts = [job.prompt for job in jobs]
        self.pipe.require_room([*prompts, self.settings.negative_prompt])
        carried = self.pipe.carried
        attending = frozenset(carried.model.sites if self.settings.rra else ())
        for option in self.options:
            option.check(carried, prompts, attending)

    def generate(self, jobs: Sequence[Job], folder: Path, concept_file: Path | None = None) -> None:
        """Generates this process's share of the jobs in batches.

        Writes the image and the manifest's line of each into `folder`. concept_file: told there,
        so that the pictures' subject is known wherever they lie.
        """
        if concept_file:
            self.facts["concept_file"] = told_path(str(concept_file), folder)
        processes = self.accelerator.num_processes
        mine = jobs[self.accelerator.process_index :: processes]
        if processes > 1 and self.settings.rra:
            self._share_reference()

        quiet = not self.accelerator.is_main_process
        size = self.config.batch_size
        with tqdm(total=len(mine), desc="drawing", unit="image", disable=quiet) as bar:
            for first in range(0, len(mine), size):
                batch = mine[first : first + size]
                self._generate_batch(batch, folder)
                bar.update(len(batch))
        self.accelerator.wait_for_everyone()

    def _generate_batch(self, jobs: Sequence[Job], folder: Path) -> None:
        prompts = [job.prompt for job in jobs]
        seeds = [seed_of(self.config.seed, job.prompt, job.number) for job in jobs]
        images = self.images(prompts, seeds)
        flags = self.checker.flags(images) if self.checker else [None] * len(images)

        for job, seed, image, flag in zip(jobs, seeds, images, flags, strict=True):
            row = {"seed": seed, "run_seed": self.config.seed, "number": job.number, **self.facts}
            if flag is not None:
                row["nsfw"] = flag
            save_image(folder, job, blurred(image) if flag else image, row)

    def images(self, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        """One image for each prompt and its seed."""
        settings = self.settings
        return self.pipe(
            prompts,
            height=settings.height,
            width=settings.width,
            negative_prompt=settings.negative_prompt,
            seeds=seeds,
            rra=settings.rra,
            reference=self.photos,
            attention_window=settings.attention_window,
            reference_for=settings.reference_for,
            reference_strength=settings.reference_strength,
            reference_cache_gb=self.config.reference_cache_gb,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            guidance_rescale=settings.guidance_rescale,
            sampling_options=self.options,
        ).images

    def _share_reference(self) -> None:
        """Computes the reference's features over the schedule, each step's in one process."""
        settings = self.settings
        cache_gb = self.config.reference_cache_gb
        schedule = self.pipe.schedule(settings.steps, self.photos, settings.reference_for, cache_gb)
        processes = self.accelerator.num_processes
        schedule.fill(self.accelerator.process_index, processes, broadcast)


def _pipeline(
    config: SampleConfig, concept: Concept, base: Base, device: torch.device
) -> EqDiffPipeline:
    """The base with the subject in it, on this process's device."""
    scheduler = sampler(config.scheduler, base.scheduler.config)
    steps = config.steps(concept.recipe)
    require_steps(scheduler, steps, "--num_inference_steps")
    pipe = EqDiffPipeline.of(base, scheduler)

    pipe.register_to_config(_name_or_path=base.name)
    pipe.load_concept(concept)
    pipe.place(device, PRECISIONS[config.mixed_precision or default_precision()])
    if config.compile:
        compile_blocks(pipe.unet)
    return pipe


def finish_run(folder: Path, jobs: Sequence[Job], word: str, *, page: bool = False) -> Path:
    """Puts all processes' images in place, and warns of blurred ones.

    word: stands for the subject in the grid's captions. page: write gallery.html too. Returns what
    shows all images: that page, else the grid.
    """
    rows = finish(folder, jobs, word)

    flagged = sum(row.get("nsfw", False) for row in rows)
    if flagged:
        LOG.warning(
            "the base's safety checker flagged %d of %d images: "
            "they are written blurred, and %s says which ones",
            flagged,
            len(jobs),
            folder / MANIFEST,
        )
    return (write_beside(folder) if page else None) or folder / GRID
