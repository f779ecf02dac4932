"""Draw a learned subject: concept.safetensors and prompts -> images, grid.png, manifest.jsonl.

python test_eqdiff.py --concept outputs/mug/concept.safetensors --prompt "a watercolor painting of a {}" [--help]
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqdiff.config import ASSETS, UserError, is_bundled, main_guard, parse, read_prompts, resolve_base
from eqdiff.options import require_processes
from eqdiff.sample_config import Job, SampleConfig, find_concept


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
    known = {**{str(number): number for number in range(len(names))}, **{name: i for i, name in enumerate(names)}}
    if Path(named).name not in known:
        raise UserError(f"--reference {named}: not one of the concept's photos; name one of {', '.join(names)}")
    return known[Path(named).name]


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
    from eqdiff.samples import keep

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
                row = {"seed": seed, **facts} | ({} if flag is None else {"nsfw": flag})
                keep(folder, job, blurred(image) if flag else image, row)
            bar.update(len(part))


def finish_run(folder: Path, jobs: Sequence[Job]) -> None:
    """Everything in its place; says how many pictures are blurred."""
    from eqdiff.samples import MANIFEST, finish

    flagged = sum(row.get("nsfw", False) for row in finish(folder, jobs))
    if flagged:
        logging.warning(
            "the base's safety checker flagged %d of %d images: they are written blurred, and %s says which ones",
            flagged,
            len(jobs),
            folder / MANIFEST,
        )


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(SampleConfig, argv)
    base = resolve_base(config.pretrained_model_name_or_path)
    path, jobs = find_concept(config.concept), jobs_of(config, base)
    from accelerate import Accelerator

    from eqdiff.base import load_base
    from eqdiff.concept import load_concept
    from eqdiff.samples import begin, make_folder

    accelerator = Accelerator()
    level = logging.WARNING if accelerator.is_main_process else logging.ERROR  # each line once
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    require_processes(accelerator)
    concept = load_concept(path)
    attend = config.rra and concept.rra
    if attend and not (concept.references.names or config.instance_data_dir):
        raise UserError(
            f"{path}: it carries no photos to attend to; give them with --instance_data_dir DIR, or draw with --no-rra"
        )
    folder = Path(config.output_dir) if config.output_dir else path.parent / "samples"
    make_folder(folder)
    loaded = load_base(base)
    concept = with_photos(config, concept, path.parent / "masks", loaded, accelerator)
    pipe = build_pipeline(config, loaded, concept, accelerator)
    number = reference_number(config.reference, concept)
    pipe.require_room([job.prompt for job in jobs])
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
    checker = load_checker(config, loaded, pipe)
    if accelerator.is_main_process:
        begin(folder)
    accelerator.wait_for_everyone()
    draw(pipe, checker, mine, config, folder, facts, accelerator)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish_run(folder, jobs)
        accelerator.print(f"done: {len(jobs)} images; look at {folder / 'grid.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
