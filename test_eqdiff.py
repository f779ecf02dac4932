"""Draw a learned subject: concept.safetensors and prompts -> images, grid.png, manifest.jsonl.

python test_eqdiff.py --concept outputs/mug/concept.safetensors --prompt "a watercolor painting of a {}" [--help]
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eqdiff.config import ASSETS, UserError, is_bundled, main_guard, parse, read_prompts, resolve_base
from eqdiff.options import require_processes
from eqdiff.sample_config import SampleConfig, find_concept

SHEET = 50_000_000  # pixels of all pictures in grid.png: of more than some 190 at 512 pixels each is shown smaller


class Job(NamedTuple):
    """One image to draw: its place in the list, its prompt, which image of that prompt it is."""

    index: int
    prompt: str
    number: int

    @property
    def file(self) -> str:
        words = "".join(c if c.isascii() and c.isalnum() else "-" for c in self.prompt.replace("{}", "S"))
        return f"{self.index:04d}-{'-'.join(filter(None, words.split('-')))[:60]}-{self.number}.png"


def jobs_of(config: SampleConfig, base: str) -> list[Job]:
    """Every image that is asked for, in order."""
    default = ASSETS / "prompts" / ("toybox.txt" if is_bundled(base) else "style.txt")
    prompts = config.prompt if config.prompt and not config.prompts else read_prompts(config.prompts or default)
    prompts = tuple(prompts) + (config.prompt if config.prompts else ())
    pairs = [(prompt, number) for prompt in prompts for number in range(config.num_images_per_prompt)]
    return [Job(index, prompt, number) for index, (prompt, number) in enumerate(pairs)]


def with_photos(config: SampleConfig, concept: Any, made_masks: Path, loaded: Any, accelerator: Any) -> Any:
    """The concept with the photos to attend to: those named, with what masks its training made, else its own."""
    from eqdiff.setup import photo_references

    if not config.instance_data_dir:
        return concept
    loaded.vae.to(accelerator.device)
    return photo_references(concept, loaded, config.instance_data_dir, config.mask_dir, made_masks)


def build_pipeline(config: SampleConfig, loaded: Any, concept: Any, accelerator: Any) -> Any:
    """The base with the subject in it, on this process's device."""
    from eqdiff.base import PRECISIONS, default_precision
    from eqdiff.pipeline import SCHEDULERS, EqDiffPipeline

    pipe = EqDiffPipeline.of(loaded, SCHEDULERS[config.scheduler].from_config(loaded.scheduler.config))
    pipe.register_to_config(_name_or_path=loaded.name)
    pipe.load_concept(concept)
    pipe.place(accelerator.device, PRECISIONS[config.mixed_precision or default_precision()])
    if config.compile:
        pipe.unet.compile_repeated_blocks()
    return pipe


def share_reference(pipe: Any, use: dict[str, Any], steps: int, accelerator: Any) -> None:
    """The reference's features over the schedule, each computed by one process and sent to the others."""
    from accelerate.utils import broadcast

    if accelerator.num_processes > 1 and use["rra"]:
        schedule = pipe.schedule(steps, use["reference"], use["reference_for"], use["reference_cache_gb"])
        schedule.fill(accelerator.process_index, accelerator.num_processes, broadcast)


def reference_number(named: str | None, concept: Any) -> int:
    """Which of the concept's photos to attend to: by file name or number, the first by default."""
    names = concept.references.names
    if named is None:
        return 0
    if not names:
        raise UserError(f"--reference {named}: the concept carries no photos; give them with --instance_data_dir")
    wanted = Path(named).name
    if wanted in names:
        return names.index(wanted)
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    raise UserError(f"--reference {named}: not one of the concept's photos; name one of {', '.join(names)}")


def load_checker(config: SampleConfig, loaded: Any, pipe: Any) -> Any:
    """The base's safety checker, None where it has none or is not to be asked."""
    from eqdiff.safety import load_safety_checker

    return load_safety_checker(loaded.name, pipe.device, pipe.unet.dtype) if config.safety_checker else None


def draw(
    pipe: Any,
    checker: Any,
    jobs: Sequence[Job],
    config: SampleConfig,
    folder: Path,
    facts: dict[str, Any],
    accelerator: Any,
) -> None:
    """Draws this process's jobs in batches and writes image and manifest line of each."""
    from tqdm import tqdm

    from eqdiff.pipeline import seed_of
    from eqdiff.safety import blurred

    use = {name: getattr(config, name) for name in ("attention_window", "reference_for", "reference_cache_gb")}
    chosen = pipe.chosen(facts["reference_number"], config.num_references) if facts["rra"] else (0,)
    use |= {"rra": facts["rra"], "reference": chosen}
    share_reference(pipe, use, facts["steps"], accelerator)
    with tqdm(total=len(jobs), desc="drawing", unit="image", disable=not accelerator.is_main_process) as bar:
        for first in range(0, len(jobs), config.batch_size):
            part = jobs[first : first + config.batch_size]
            seeds = [seed_of(config.seed, job.prompt, job.number) for job in part]
            images = pipe(
                [job.prompt for job in part],
                seeds=seeds,
                **use,
                num_inference_steps=facts["steps"],
                guidance_scale=facts["guidance"],
            ).images
            flags = checker.flags(images) if checker else [None] * len(images)
            for job, seed, image, flag in zip(part, seeds, images, flags, strict=True):
                (blurred(image) if flag else image).save(folder / "images" / job.file)
                row = {"file": f"images/{job.file}", "prompt": job.prompt, "seed": seed, **facts}
                row |= {} if flag is None else {"nsfw": flag}
                (folder / f".{job.index:06d}.json").write_text(json.dumps(row))
            bar.update(len(part))


def collect(folder: Path, jobs: Sequence[Job]) -> None:
    """manifest.jsonl and grid.png of all processes' images, in the order of the jobs."""
    from PIL import Image

    from eqdiff.data import image_grid

    rows = [folder / f".{job.index:06d}.json" for job in jobs]
    lines = [row.read_text() for row in rows]
    (folder / "manifest.jsonl").write_text("".join(line + "\n" for line in lines))
    for row in rows:
        row.unlink()
    flagged = sum(json.loads(line).get("nsfw", False) for line in lines)
    if flagged:
        logging.warning(
            "the base's safety checker flagged %d of %d images: they are written blurred, and %s says which ones",
            flagged,
            len(lines),
            folder / "manifest.jsonl",
        )
    with Image.open(folder / "images" / jobs[0].file) as first:
        shrink = min(1.0, (SHEET / (len(jobs) * first.width * first.height)) ** 0.5)
    images = [shown(folder / "images" / job.file, shrink) for job in jobs]
    image_grid(images, columns=min(4, len(images)), captions=[job.prompt.replace("{}", "S") for job in jobs]).save(
        folder / "grid.png"
    )


def shown(path: Path, shrink: float) -> Any:
    """A picture as the grid shows it. Its file is closed: a process may have some thousand open, not more."""
    from PIL import Image

    with Image.open(path) as image:
        whole = image.convert("RGB")
    return whole if shrink == 1 else whole.resize([max(1, round(shrink * side)) for side in whole.size])


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(SampleConfig, argv)
    base = resolve_base(config.pretrained_model_name_or_path)
    path, jobs = find_concept(config.concept), jobs_of(config, base)
    from accelerate import Accelerator

    from eqdiff.base import load_base
    from eqdiff.concept import load_concept

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    accelerator = Accelerator()
    require_processes(accelerator)
    concept = load_concept(path)
    attend = config.rra and concept.rra
    if attend and not (concept.references.names or config.instance_data_dir):
        raise UserError(
            f"{path}: it carries no photos to attend to; give them with --instance_data_dir DIR, or draw with --no-rra"
        )
    folder = Path(config.output_dir) if config.output_dir else path.parent / "samples"
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --output_dir") from None
    loaded = load_base(base)
    concept = with_photos(config, concept, path.parent / "masks", loaded, accelerator)
    pipe = build_pipeline(config, loaded, concept, accelerator)
    number = reference_number(config.reference, concept)
    settings = concept.settings
    facts = {
        "reference": concept.references.names[number] if concept.references.names else None,
        "reference_number": number,
        "num_references": config.num_references or settings.get("num_references", 1),
        "rra": attend,
        "attention_window": config.attention_window,
        "reference_for": config.reference_for,
        "steps": config.num_inference_steps or settings["num_inference_steps"],
        "guidance": settings["guidance_scale"] if config.guidance_scale is None else config.guidance_scale,
        "scheduler": config.scheduler,
        "concept": concept.hash,
    }
    mine = jobs[accelerator.process_index :: accelerator.num_processes]
    draw(pipe, load_checker(config, loaded, pipe), mine, config, folder, facts, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        collect(folder, jobs)
        accelerator.print(f"done: {len(jobs)} images; look at {folder / 'grid.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
