"""Draw a learned subject: concept.safetensors and prompts -> images, grid.png, manifest.jsonl.

python test_eqdiff.py --concept outputs/mug/concept.safetensors --prompt "a watercolor of a {}"
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import eqdiff.process.early  # noqa: F401  first: for Ctrl-C while the rest is imported
from eqdiff.errors import main_guard, memory_guard
from eqdiff.settings.places import resolve_base
from eqdiff.settings.presets import parse
from eqdiff.settings.sample import (
    SampleConfig,
    find_concepts,
    jobs_of,
    name_of,
    samples_folder,
)
from eqdiff.wording import say


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(SampleConfig, argv)
    base = resolve_base(config.pretrained_model_name_or_path)
    paths = find_concepts(config.concept)
    folder = Path(config.output_dir) if config.output_dir else samples_folder(paths)
    jobs = jobs_of(config, base, [name_of(path) for path in paths])

    # torch takes seconds: only once the settings are right
    from eqdiff.sampling.folder import make_folder, require_ours, start_run
    from eqdiff.sampling.run import (
        LESS_MEMORY,
        build_run,
        finish_run,
        read_concept,
        start_processes,
    )

    accelerator = start_processes()
    with memory_guard(LESS_MEMORY):
        concept = read_concept(config, paths)
        require_ours(folder, jobs, overwrite=config.overwrite)
        make_folder(folder)

        run = build_run(config, concept, base, paths[0].parent / "masks", accelerator)
        run.require_drawable(jobs)
        if accelerator.is_main_process:
            start_run(folder)
        accelerator.wait_for_everyone()

        run.generate(jobs, folder, paths[0])

        if accelerator.is_main_process:
            sheet = finish_run(folder, jobs, concept.recipe.class_word, page=config.gallery)
            images = "1 image" if len(jobs) == 1 else f"{len(jobs)} images"
            say(f"done: {images}; look at {sheet}")


if __name__ == "__main__":
    main(sys.argv[1:])
