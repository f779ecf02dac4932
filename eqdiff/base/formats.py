"""What kind of model a folder or file holds, from its index and its tensors' names.

No weights are loaded for that.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eqdiff.errors import UserError

SUPPORTED = "a Stable Diffusion 1.x or 2.x"
MOST_YAML = 100_000  # bytes read of a .yaml beside a single file
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
# other kinds of models, by the pipeline's name in model_index.json
OTHER_CLASSES = {
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "Inpaint": "an inpainting model",
}
# and by how a tensor's name starts in a single file, without "model.diffusion_model."
OTHER_TENSORS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "FLUX",
    "lora_": "a LoRA, not a whole model",
    "tokens.rows": "a concept of EqDiff, not its base",
}
CLIP = "cond_stage_model.transformer."  # the text encoder of SD 1.x
OPEN_CLIP = "cond_stage_model.model."  # the text encoder of SD 2.x
# part of a model -> how the names of its tensors start in a single file
PARTS = {
    "UNet": "model.diffusion_model.",
    "VAE": "first_stage_model.",
    "text encoder": (CLIP, OPEN_CLIP),
}


def other_pipeline(index: Mapping[str, Any]) -> str | None:
    """The kind of model that a model_index.json describes, as "Stable Diffusion XL".

    None if it is a Stable Diffusion 1.x or 2.x.
    """
    name = str(index.get("_class_name"))
    others = ("transformer", "text_encoder_2", "prior")
    present = [part for part in others if _is_named(index.get(part))]

    for part, kind in OTHER_CLASSES.items():
        if part in name:
            return kind

    return f"a {name}" if present or "unet" not in index else None


def _is_named(part: Any) -> bool:
    """Whether a value of a model_index.json is a pair of library and class."""
    return isinstance(part, list) and bool(part) and part[0] is not None


def said_schedule(
    file: Path, names: Iterable[str], metadata: Mapping[str, str] | None
) -> dict[str, Any]:
    """What a single file itself says of its noise schedule, as keys of a scheduler_config.json.

    It can say that it predicts velocity by a tensor named v_pred, by its metadata (modelspec), or
    by the .yaml of its name beside it; and that no signal is left at its last timestep by a tensor
    named ztsnr. The .yaml also has the betas.
    """
    marks = {name.rpartition(".")[2] for name in names}
    said = _said_in_yaml(file.with_suffix(".yaml"))
    velocity = said.pop("parameterization", "") == "v"

    predicted = (metadata or {}).get("modelspec.prediction_type", "").lower()
    if velocity or "v_pred" in marks or predicted in ("v", "v_prediction"):
        said["prediction_type"] = "v_prediction"
    if "ztsnr" in marks:
        said |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return said


def _said_in_yaml(file: Path) -> dict[str, Any]:
    """The lines of a .yaml that say something of the noise schedule; {} without such a file."""
    if not file.is_file():
        return {}
    text = file.read_bytes()[:MOST_YAML].decode("utf-8", errors="replace")
    lines = dict(re.findall(r"^\s*(\w+):\s*[\"']?([\w.+-]+)", text, re.MULTILINE))

    said: dict[str, Any] = {}
    if "parameterization" in lines:
        said["parameterization"] = lines["parameterization"]
    for theirs, ours in (("linear_start", "beta_start"), ("linear_end", "beta_end")):
        with suppress(KeyError, ValueError):
            said[ours] = float(lines[theirs])
    return said


def other_file(names: Iterable[str]) -> str | None:
    """The kind of a single file with tensors of these names, as "FLUX" or "a model without VAE".

    None if it is a whole Stable Diffusion 1.x or 2.x.
    """
    names = list(names)
    missing = [
        part for part, start in PARTS.items() if not any(name.startswith(start) for name in names)
    ]
    if not missing:
        return None  # whole, whatever strays into it besides, as the rest of a merged LoRA

    bare = [name.removeprefix("model.diffusion_model.") for name in names]
    for start, kind in OTHER_TENSORS.items():
        if any(name.startswith(start) for name in bare):
            return kind

    if any(".lora_" in name for name in names):
        return OTHER_TENSORS["lora_"]
    if missing == list(PARTS):
        return "not a model in Stable Diffusion's original layout"
    return f"a model without {missing[0]}"


def weights_of(folder: Path) -> list[Path]:
    """The weight files of a part: those without a variant, else those of one variant, as "fp16".

    Large weights are in several files.
    Raises UserError if there are only pickles, or no weights at all.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files and any(path.suffix in PICKLES for path in folder.glob("*")):
        remedy = "convert them to .safetensors"
        raise UserError(f"base {folder}: pickles alone, which can run any program; {remedy}")
    if not files:
        raise UserError(f"base {folder}: no weights (.safetensors) there; get the base again")

    variants = {file: variant_of([file]) for file in files}
    chosen = None if None in variants.values() else variants[files[0]]
    return [file for file in files if variants[file] == chosen]


def stored_variant(folder: Path) -> str | None:
    """The only variant in a base's folder, as "fp16"; None if the plain weights are there.

    Raises UserError as `weights_of`.
    """
    unet = variant_of(weights_of(folder / "unet"))
    vae = variant_of(weights_of(folder / "vae"))
    return unet or vae


def variant_of(files: Sequence[Path]) -> str | None:
    """The variant in the first of these file names; None if it has none.

    It is "fp16" in model.fp16-00001-of-00002.safetensors.
    """
    stem = re.sub(r"-\d+-of-\d+", "", files[0].name.removesuffix(".safetensors"))
    return stem.partition(".")[2] or None
