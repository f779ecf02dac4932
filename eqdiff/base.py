"""The base, as it comes: a folder, a hub id or a single file of Stable Diffusion 1.x or 2.x; precision; fingerprint."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from eqdiff.config import ASSETS, UserError
from eqdiff.layouts import CLIP, PICKLES, WANTED, other_file, other_pipeline, variant_of, weights_of

FINGERPRINT_SAMPLES = 64  # values of each tensor
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SD1_CONFIG = ASSETS / "sd1"
LOADING_ERRORS = (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError)
WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None}


def default_precision() -> str:
    """bf16 on a GPU that has it, else full precision: CPUs without bf16 units take 100 times as long in it."""
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


@dataclass
class Base:
    """A loaded Stable Diffusion: its parts, the name it was loaded by and the fingerprint of its weights."""

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    name: str
    fingerprint: str

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.scheduler.alphas_cumprod


def load_base(name: str) -> Base:
    """An SD 1.x or 2.x in fp32: a folder in diffusers layout, a .safetensors file in the original layout, or a hub id.

    Only for a hub id is anything asked of the network, and not with HF_HUB_OFFLINE=1. A file is read by SD 1.x's
    configuration, or by that in the folder $EQDIFF_BASE_CONFIG (diffusers layout, no weights needed).
    UserError: not found, damaged, incomplete, pickled, or another kind of model.
    """
    path = Path(name)
    if path.suffix.lower() in PICKLES:
        raise UserError(f"base {name}: a pickle, which can run any program; convert it to .safetensors and name that")
    _quiet()
    try:
        if path.is_file():
            pipe = _from_file(path)
        elif path.is_dir():
            pipe = _from_folder(path, name)
        elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            pipe = _from_folder(_fetched(name), name)
        else:
            raise UserError(f"base {name}: no such folder or file; name {WANTED}: folder, .safetensors file or hub id")
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"base {name}: cannot be loaded as {WANTED} ({reason}); name another") from None
    return _checked(pipe, name)


def fingerprint(*modules: nn.Module) -> str:
    """16 hex digits that tell weights apart: names, shapes and a few values of every tensor, rounded to bf16.

    One set of weights has one fingerprint, whatever its library calls CLIP's layers; its copy in half precision has
    another.
    """
    digest = hashlib.sha256()
    for module in modules:
        named = {name.removeprefix("text_model."): tensor for name, tensor in module.named_parameters()}
        for name, tensor in sorted(named.items()):
            flat = tensor.detach().flatten()
            few = flat[:: max(1, len(flat) // FINGERPRINT_SAMPLES)].float().bfloat16().float().cpu()
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + few.numpy().tobytes())
    return digest.hexdigest()[:16]


def _quiet() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # five files in a second are no progress to watch


def _checked(pipe: Any, name: str) -> Base:
    """The parts of a loaded pipeline, in fp32. UserError: weights are missing, or it is not made for text alone."""
    from diffusers import DDIMScheduler

    modules = (pipe.vae, pipe.text_encoder, pipe.unet)
    absent = [key for module in modules for key, weight in module.named_parameters() if weight.is_meta]
    if absent:
        raise UserError(f"base {name}: {len(absent)} weights are missing, as {absent[0]}; get it again")
    for module in modules:
        for weight in module.parameters():
            # memory of its own: sums round by where a mapped file's tensors happen to lie, and files shall agree
            weight.data = weight.data.to(torch.float32, copy=True)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    channels, target = pipe.unet.config.in_channels, scheduler.config.prediction_type
    if channels != 4 or target not in ("epsilon", "v_prediction"):
        kind = "an inpainting model, " if channels == 9 else ""
        raise UserError(f"base {name}: {kind}{channels} input channels, {target} prediction; name {WANTED} for text")
    parts = (pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, scheduler)
    return Base(*parts, name=name, fingerprint=fingerprint(pipe.unet, pipe.text_encoder))


def _require_kind(index: Path, name: str) -> None:
    kind = other_pipeline(json.loads(index.read_text(encoding="utf-8")))
    if kind:
        raise UserError(f"base {name}: this is {kind}; name {WANTED}")


def _from_folder(folder: Path, name: str) -> Any:
    """The pipeline in a folder of diffusers layout."""
    from diffusers import StableDiffusionPipeline

    index = folder / "model_index.json"
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        hint = f"name the file itself, {files[0]}" if files else f"name {WANTED} folder in diffusers layout"
        raise UserError(f"base {name}: no model_index.json there; {hint}")
    _require_kind(index, name)
    weights = {part: weights_of(folder / part) for part in ("unet", "vae", "text_encoder")}
    clip = {key: tensor for file in weights["text_encoder"] for key, tensor in load_file(file).items()}
    return StableDiffusionPipeline.from_pretrained(
        folder,
        text_encoder=_text_encoder(name, folder, clip),
        variant=variant_of(weights["unet"]) or variant_of(weights["vae"]),
        use_safetensors=True,
        local_files_only=True,
        requires_safety_checker=False,
        **WITHOUT_CHECKER,
    )


def _text_encoder(name: str, config: Path, tensors: dict[str, Tensor]) -> Any:
    """CLIP's text model of the configuration in config/text_encoder. Its layers are named with "text_model." before
    them or without, in files as in libraries, and a library that meets the other kind starts from noise, with a warning
    at most."""
    from accelerate import init_empty_weights
    from transformers import CLIPTextConfig, CLIPTextModel

    settings = CLIPTextConfig.from_pretrained(config, subfolder="text_encoder", local_files_only=True)
    with init_empty_weights():
        model = CLIPTextModel(settings).eval()
    prefix = "text_model." if any(key.startswith("text_model.") for key in model.state_dict()) else ""
    named = {prefix + key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    missing = model.load_state_dict(named, strict=False, assign=True).missing_keys
    if missing:
        raise UserError(f"base {name}: its text encoder lacks {missing[0]}; get it again")
    return model


def _from_file(path: Path) -> Any:
    """The pipeline in a single file."""
    from diffusers import StableDiffusionPipeline

    if path.suffix.lower() != ".safetensors":
        raise UserError(f"base {path}: neither a folder nor a .safetensors file; name {WANTED}")
    given = os.environ.get("EQDIFF_BASE_CONFIG")
    config = Path(given or SD1_CONFIG)
    if not (config / "model_index.json").is_file():
        raise UserError(f"EQDIFF_BASE_CONFIG {config}: no model_index.json there; name a folder in diffusers layout")
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        kind = other_file(names)
        if kind:
            raise UserError(f"base {path}: this is {kind}; name {WANTED}")
        clip = {name.removeprefix(CLIP): file.get_tensor(name) for name in names if name.startswith(CLIP)}
    how: dict[str, Any] = dict(WITHOUT_CHECKER)
    if clip:
        how["text_encoder"] = _text_encoder(str(path), config, clip)
    elif not given:
        raise UserError(
            f"base {path}: this is Stable Diffusion 2.x, and the file does not say if it predicts noise or velocity; "
            "name a folder with its configuration (diffusers layout, no weights needed): EQDIFF_BASE_CONFIG=FOLDER"
        )
    try:
        return StableDiffusionPipeline.from_single_file(
            str(path), config=str(config), local_files_only=True, requires_safety_checker=False, **how
        )
    except NotImplementedError:  # it moves layers that nothing was found for
        raise UserError(f"base {path}: some of its weights are missing; get it again") from None


def _fetched(name: str) -> Path:
    """A hub id -> its folder in the hub's cache, filled if need be and allowed."""
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        index = Path(snapshot_download(name, allow_patterns=["model_index.json"])) / "model_index.json"
        if index.is_file():
            _require_kind(index, name)  # before gigabytes have come
        try:
            return Path(StableDiffusionPipeline.download(name, use_safetensors=True, **WITHOUT_CHECKER))
        except (OSError, ValueError):  # a few hold half precision alone
            return Path(StableDiffusionPipeline.download(name, use_safetensors=True, variant="fp16", **WITHOUT_CHECKER))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"base {name}: no folder or file here, and not to be had from the hub ({reason}); name a folder or file, "
            "or see to the network and HF_HUB_OFFLINE"
        ) from None
