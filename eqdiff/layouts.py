"""What lies in a folder or file that somebody names as base: told by its index and its tensors' names, not loaded."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eqdiff.config import UserError

WANTED = "a Stable Diffusion 1.x or 2.x"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# what else people have: by the pipeline's name in model_index.json
OTHER_CLASSES = {
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "Inpaint": "an inpainting model",
}
# and by how a tensor's name starts in a single file, "model.diffusion_model." taken off
OTHER_TENSORS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "FLUX",
    "lora_": "a LoRA, not a whole model",
    "tokens.rows": "a concept of EqDiff, not its base",
}
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."  # text encoders of SD 1.x, 2.x
PARTS = {"UNet": "model.diffusion_model.", "VAE": "first_stage_model.", "text encoder": (CLIP, OPEN_CLIP)}


def other_pipeline(index: Mapping[str, Any]) -> str | None:
    """What a model_index.json describes, if it is not what we need: "Stable Diffusion XL"."""
    name = str(index.get("_class_name"))
    known = next((kind for part, kind in OTHER_CLASSES.items() if part in name), None)
    strange = [part for part in ("transformer", "text_encoder_2", "prior") if (index.get(part) or [None])[0]]
    return known or (f"a {name}" if strange or "unet" not in index else None)


def other_file(names: Iterable[str]) -> str | None:
    """What a single file with tensors of these names is, if it is not what we need: "FLUX", "a model without VAE"."""
    names = list(names)
    bare = [name.removeprefix("model.diffusion_model.") for name in names]
    for start, kind in OTHER_TENSORS.items():
        if any(name.startswith(start) for name in bare):
            return kind
    if any(".lora_" in name for name in names):
        return OTHER_TENSORS["lora_"]
    missing = [part for part, start in PARTS.items() if not any(name.startswith(start) for name in names)]
    if missing == list(PARTS):
        return "not a model in Stable Diffusion's original layout"
    return f"a model without {missing[0]}" if missing else None


def weights_of(folder: Path) -> list[Path]:
    """The weight files of a part: the plain ones, in several shards perhaps, else those of one variant, as "fp16".
    UserError: only pickles there, or no weights at all."""
    files = sorted(folder.glob("*.safetensors"))
    if not files and any(path.suffix in PICKLES for path in folder.glob("*")):
        raise UserError(f"base {folder}: pickles alone, which can run any program; convert them to .safetensors")
    if not files:
        raise UserError(f"base {folder}: no weights (.safetensors) there; get the base again")
    variants = {file: variant_of([file]) for file in files}
    chosen = None if None in variants.values() else variants[files[0]]
    return [file for file in files if variants[file] == chosen]


def variant_of(files: Sequence[Path]) -> str | None:
    """What stands before .safetensors in the first of these names, as "fp16" in model.fp16-00001-of-00002.safetensors;
    None for a plain name."""
    stem = re.sub(r"-\d+-of-\d+", "", files[0].name.removesuffix(".safetensors"))
    return stem.partition(".")[2] or None
