"""Reads a Stable Diffusion from where it lies: a folder, a single file, or the hub.

Nothing is loaded before its names are checked: see `formats.py` and `allowed.py`.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from eqdiff.base.allowed import require_allowed, require_index
from eqdiff.base.formats import (
    CLIP,
    SUPPORTED,
    other_file,
    other_pipeline,
    said_schedule,
    variant_of,
    weights_of,
)
from eqdiff.base.schedule import noise_schedule
from eqdiff.errors import UserError, reason_of
from eqdiff.settings.places import ASSETS

LOG = logging.getLogger(__name__)
SD1_CONFIG = ASSETS / "sd1"
WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None}
FEW_STEPS = ("LCMScheduler", "TCDScheduler")  # of bases that were distilled for them


def from_folder(folder: Path, name: str) -> StableDiffusionPipeline:
    """The pipeline in a folder of diffusers layout; messages call it `name`.

    Raises UserError if it is another kind of model, incomplete, or names code of its own. What
    else is wrong with its files raises what the libraries raise.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        hint = f"name {SUPPORTED} folder in diffusers layout"
        if files:
            hint = f"name the file itself, {files[0]}"
        raise UserError(f"base {name}: no model_index.json there; {hint}")

    _require_kind(index, name)
    require_allowed(folder, name)

    clip: dict[str, Tensor] = {}
    for file in weights_of(folder / "text_encoder"):
        clip |= load_file(file)

    how = {"local_files_only": True}
    vae = variant_of(weights_of(folder / "vae"))
    unet = variant_of(weights_of(folder / "unet"))
    schedule = _schedule_in(folder)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(
            folder, subfolder="vae", variant=vae, use_safetensors=True, **how
        ),
        text_encoder=_text_encoder(name, folder, clip),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", **how),
        unet=UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", variant=unet, use_safetensors=True, **how
        ),
        scheduler=noise_schedule(schedule, name),
        requires_safety_checker=False,
        **WITHOUT_CHECKER,
    )
    _tell_of_few_steps(schedule, pipe, name)
    return pipe


def from_file(path: Path) -> StableDiffusionPipeline:
    """The pipeline in a single file of Stable Diffusion's original layout.

    Its configuration is SD 1.x's, or that in the folder $EQDIFF_BASE_CONFIG.
    Raises UserError as `from_folder` does.
    """
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"base {path}: neither a folder nor a .safetensors file; name {SUPPORTED}")

    named = os.environ.get("EQDIFF_BASE_CONFIG")
    config = Path(named or SD1_CONFIG)
    if not (config / "model_index.json").is_file():
        remedy = "name a folder in diffusers layout"
        raise UserError(f"EQDIFF_BASE_CONFIG {config}: no model_index.json there; {remedy}")
    require_allowed(config, str(config))

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        kind = other_file(names)
        if kind:
            raise UserError(f"base {path}: this is {kind}; name {SUPPORTED}")
        of_clip = [name for name in names if name.startswith(CLIP)]
        clip = {name.removeprefix(CLIP): file.get_tensor(name) for name in of_clip}
        said = said_schedule(path, names, file.metadata())

    schedule = _schedule_in(config) | said
    parts: dict[str, Any] = {"scheduler": noise_schedule(schedule, str(path)), **WITHOUT_CHECKER}
    if clip:
        parts["text_encoder"] = _text_encoder(str(path), config, clip)
    elif not named:
        raise UserError(
            f"base {path}: this is Stable Diffusion 2.x, and the file does not say if it predicts "
            "noise or velocity; name a folder with its configuration (diffusers layout, no weights "
            "needed): EQDIFF_BASE_CONFIG=FOLDER"
        )

    try:
        pipe = StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(config),
            local_files_only=True,
            requires_safety_checker=False,
            **parts,
        )
    except NotImplementedError:  # it moves layers that got no weights
        missing = "some of its weights are missing; get it again"
        raise UserError(f"base {path}: {missing}") from None
    _tell_of_few_steps(schedule, pipe, str(path))
    return pipe


def from_hub(name: str) -> StableDiffusionPipeline:
    """The pipeline with a hub id, from the hub's cache or downloaded into it.

    Raises UserError as `from_folder` does, and if it cannot be had.
    """
    return from_folder(_fetched(name), name)


def _require_kind(file: Path, name: str) -> None:
    """Raises UserError if a model_index.json is of another kind of model or names its own code."""
    index = json.loads(file.read_text(encoding="utf-8"))
    kind = other_pipeline(index)
    if kind:
        raise UserError(f"base {name}: this is {kind}; name {SUPPORTED}")
    require_index(index, name)


def _schedule_in(folder: Path) -> dict[str, Any]:
    """The content of a folder's scheduler_config.json."""
    file = folder / "scheduler" / "scheduler_config.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _tell_of_few_steps(
    schedule: Mapping[str, Any], pipe: StableDiffusionPipeline, name: str
) -> None:
    """Says that a base was distilled for few steps, if it was."""
    has_own_scheduler = schedule.get("_class_name") in FEW_STEPS
    if has_own_scheduler or pipe.unet.config.time_cond_proj_dim is not None:
        LOG.warning(
            "base %s: it was distilled to draw in few steps (LCM): draw with "
            "--num_inference_steps 4 to 8 and --guidance_scale 1 to 2; "
            "it was not measured how well such a base learns a subject",
            name,
        )


def _text_encoder(name: str, config: Path, tensors: dict[str, Tensor]) -> CLIPTextModel:
    """CLIP's text model, by the configuration in config/text_encoder.

    Files and libraries name its layers with "text_model." before them or without. A library that
    meets the other kind starts from random weights, with a warning at most. So the names are
    matched here.
    """
    settings = CLIPTextConfig.from_pretrained(
        config, subfolder="text_encoder", local_files_only=True
    )
    with init_empty_weights():
        model = CLIPTextModel(settings).eval()

    has_prefix = any(key.startswith("text_model.") for key in model.state_dict())
    prefix = "text_model." if has_prefix else ""
    named = {prefix + key.removeprefix("text_model."): value for key, value in tensors.items()}

    missing = model.load_state_dict(named, strict=False, assign=True).missing_keys
    if missing:
        raise UserError(f"base {name}: its text encoder lacks {missing[0]}; get it again")
    return model


def _fetched(name: str) -> Path:
    """The folder of a hub id in the hub's cache. What is missing is downloaded, if that is allowed.

    Raises UserError if it is neither there nor to be had, or of another kind.
    """
    download = StableDiffusionPipeline.download
    try:
        index = huggingface_hub.snapshot_download(name, allow_patterns=["model_index.json"])
        file = Path(index) / "model_index.json"
        if file.is_file():
            _require_kind(file, name)  # before gigabytes are downloaded

        try:
            return Path(download(name, use_safetensors=True, **WITHOUT_CHECKER))
        except (OSError, ValueError):  # a few repositories hold half precision alone
            return Path(download(name, use_safetensors=True, variant="fp16", **WITHOUT_CHECKER))

    except (OSError, ValueError) as error:
        reason = reason_of(error, 120)
        raise UserError(
            f"base {name}: no folder or file here, and not to be had from the hub ({reason}); "
            "name a folder or file, or see to the network and HF_HUB_OFFLINE"
        ) from None
