"""What a training says of its results, before and after; nothing heavy is imported for it."""

import shlex
from pathlib import Path

from eqdiff.errors import UserError
from eqdiff.settings.places import ASSETS, BUNDLED_BASE, resolve_base
from eqdiff.settings.train import TrainConfig
from eqdiff.training.stop import RESUME


def require_no_concept(config: TrainConfig) -> None:
    """Raises UserError if a finished training lies in the output folder, seconds before torch does.

    The rest of that folder is looked at later, see `folder.require_free`.
    """
    folder = Path(config.output_dir)
    concept = folder / "concept.safetensors"
    if config.overwrite or config.resume_from_checkpoint or not concept.exists():
        return

    steps = sorted((folder / "checkpoints").glob("step-*/state.json"))
    resume = f", {RESUME} to go on from its {steps[-1].parent.name}" if steps else ""
    raise UserError(
        f"{folder} holds a concept already; add --overwrite to replace it{resume}, "
        "or give another --output_dir"
    )


def closing_line(config: TrainConfig) -> str:
    """Where the results of a training are, and the command to run next, as a shell takes it."""
    folder = Path(config.output_dir)
    grids = folder / "preview"
    sheet = grids if any(grids.glob("*.png")) else folder / "masks.png"
    return f"done: {folder / 'concept.safetensors'}; look at {sheet}, then run: {command(config)}"


def command(config: TrainConfig) -> str:
    """The command that draws what was trained, from the folder where one is now."""
    root = ASSETS.parent
    script = Path("scripts") / "test.sh"
    here = Path.cwd().resolve() == root.resolve()
    words = ["bash", str(script if here else root / script), config.output_dir]

    base = config.pretrained_model_name_or_path
    by_itself = resolve_base(base) == resolve_base(None) == str(BUNDLED_BASE)
    if not by_itself:
        words += ["--pretrained_model_name_or_path", str(base)]
    if config.rra and not config.embed_reference:  # the concept carries no photos to attend to
        words += ["--instance_data_dir", str(config.instance_data_dir)]
        words += ["--mask_dir", config.mask_dir] if config.mask_dir else []
    return shlex.join(words)
