"""The base model, loaded: Stable Diffusion 1.x or 2.x, its precision and its fingerprint."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from eqdiff.base.allowed import require_allowed, require_index
from eqdiff.base.formats import PICKLES, SUPPORTED, stored_variant
from eqdiff.base.identity import Identity, fingerprint, identify
from eqdiff.base.read import from_file, from_folder, from_hub
from eqdiff.base.schedule import alphas_of
from eqdiff.base.trial import require_works
from eqdiff.errors import UserError, lacks_memory, reason_of, require
from eqdiff.settings.places import is_hub_id

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# the arguments of from_pretrained that say how a hub id is fetched
HUB = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")


def default_precision() -> str:
    """bf16 on a GPU that has it, else "no": CPUs without bf16 are 100 times slower in it."""
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


@dataclass
class Base:
    """A loaded Stable Diffusion.

    name: what it was loaded by. fingerprint: of the UNet's and the text encoder's weights, a few
    of each tensor; `identity` knows all of them.
    """

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    name: str
    fingerprint: str

    @property
    def label(self) -> str:
        """The bare name, for files that are passed on: no path, and never empty, not even for ".".

        A link keeps its own name. Bytes that are not UTF-8 become "?".
        """
        path = Path(os.path.abspath(self.name))
        return path.name.encode(errors="replace").decode() or "base"

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha_bar of each timestep of the noise schedule: (T,), 1000 as a rule.

        Raises UserError if the scheduler has none.
        """
        return alphas_of(self.scheduler)

    @cached_property
    def identity(self) -> Identity:
        """What must stay the same for a concept of this base. It takes seconds to read."""
        return identify(self.unet, self.text_encoder, self.tokenizer, self.scheduler)


def load_base(name: str) -> Base:
    """An SD 1.x or 2.x in fp32.

    name: a folder in diffusers layout, a .safetensors file in the original layout, or a hub id.
    Only a hub id makes requests to the network, and none with HF_HUB_OFFLINE=1. The configuration
    of a file is SD 1.x's, or that in the folder $EQDIFF_BASE_CONFIG (diffusers layout, no weights
    needed).

    Raises UserError if it is not found, damaged, incomplete, pickled, or another kind of model.
    """
    path = Path(name)
    if path.suffix.lower() in PICKLES:
        remedy = "convert it to .safetensors and name that"
        raise UserError(f"base {name}: a pickle, which can run any program; {remedy}")

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # five files in a second need none

    try:
        if path.is_file():
            pipe = from_file(path)
        elif path.is_dir():
            pipe = from_folder(path, name)
        else:
            require_hub_id(name)
            pipe = from_hub(name)
    except UserError:
        raise
    except Exception as error:  # what a stranger's file makes a library raise has no common class
        if lacks_memory(error):
            raise
        reason = reason_of(error)
        message = f"base {name}: cannot be loaded as {SUPPORTED} ({reason}); name another"
        raise UserError(message) from None

    return _base_of(pipe, name)


def require_hub_id(name: str) -> None:
    """Raises UserError unless the hub may be asked for a base that is no file or folder here."""
    remedy = f"name {SUPPORTED}: folder, .safetensors file or hub id"
    owner = name.partition("/")[0]
    is_path = "/" in name and not name.startswith(("/", "."))
    hint = f" ({owner}/ is a folder here or would be: the hub is not asked for it)"
    require(
        is_hub_id(name), f"base {name}: no such folder or file{hint if is_path else ''}; {remedy}"
    )


def admitted(name: Any, options: dict[str, Any], read_index: Callable[..., Any]) -> dict[str, Any]:
    """The options of diffusers' from_pretrained, once they and the base are checked.

    If no variant is named, a folder that holds a single one gets it. read_index: gives the
    model_index.json of a hub id.

    Raises UserError if the base or the options name code of their own, or if it has pickles alone,
    or if it is a path where nothing is.
    """
    if options.get("trust_remote_code") or options.get("custom_pipeline"):
        remedy = "leave trust_remote_code out"
        raise UserError(f"base {name}: no code of a base's own is run here; {remedy}")

    folder = Path(name)
    if not folder.is_dir():
        require_hub_id(str(name))
        index = read_index(name, **{key: options[key] for key in HUB if key in options})
        require_index(index, str(name))
        return options

    require_allowed(folder, str(name))
    return {"variant": stored_variant(folder), **options}


def _base_of(pipe: Any, name: str) -> Base:
    """The parts of a loaded pipeline, in fp32.

    Raises UserError if weights are missing, if it is not a model of text to image alone, or if its
    parts do not work together.
    """
    modules = (pipe.vae, pipe.text_encoder, pipe.unet)
    absent = [
        key for module in modules for key, weight in module.named_parameters() if weight.is_meta
    ]
    if absent:
        count = len(absent)
        raise UserError(f"base {name}: {count} weights are missing, as {absent[0]}; get it again")

    for module in modules:
        for weight in module.parameters():
            # copy: memory-mapped tensors may be unaligned, which changes rounding, and all formats
            # must give the same bits
            weight.data = weight.data.to(torch.float32, copy=True)

    channels = pipe.unet.config.in_channels
    if channels != 4:
        kind = "an inpainting model, " if channels == 9 else ""
        raise UserError(f"base {name}: {kind}{channels} input channels; name {SUPPORTED} for text")
    require_works(pipe, name)

    return Base(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        name=name,
        fingerprint=fingerprint(pipe.unet, pipe.text_encoder),
    )
