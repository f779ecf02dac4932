"""Tries a base out before anything is done with it: whole weights, parts that fit one another."""

import math
from typing import Any

import torch

from eqdiff.errors import UserError, reason_of, require
from eqdiff.finite import first_broken, is_finite

# the least vocabulary of CLIP's kind: each byte, each byte that ends a word, start and end
BYTE_LEVEL = 2 * 256 + 2
WORDS = 64  # of the vocabulary that are read to see whether the merges belong to it
MISFITS = (TypeError, ValueError, LookupError, RuntimeError, AttributeError)
MODULES = ("vae", "text_encoder", "unet")


@torch.no_grad()
def require_works(pipe: Any, name: str) -> None:
    """Raises UserError that names what is wrong with the parts of a pipeline in fp32 on the CPU.

    Its weights are looked at, its tokenizer reads some words, and each part (of the VAE the
    decoder) runs once at the smallest size: half a second for a Stable Diffusion 1.x.
    """
    for part in MODULES:
        broken = first_broken(getattr(pipe, part).named_parameters())
        require(
            broken is None,
            f"base {name}: its {part} is damaged, {broken} holds values that are not finite; "
            "get it again",
        )

    scale = pipe.vae.config.scaling_factor
    usable = isinstance(scale, int | float) and math.isfinite(scale) and scale > 0
    require(usable, f"base {name}: vae/config.json, scaling_factor {scale!r}: no positive number")

    # a tokenizer that does not know how much is read would pad to infinity
    limit = pipe.text_encoder.config.max_position_embeddings
    known = pipe.tokenizer.model_max_length
    if not isinstance(known, int) or known > limit:
        pipe.tokenizer.model_max_length = limit

    problem = tokenizer_problem(pipe.tokenizer)
    require(problem is None, f"base {name}: its tokenizer is of no use, {problem}; get it again")
    _run_once(pipe, name)


def tokenizer_problem(tokenizer: Any) -> str | None:
    """Why a tokenizer cannot read text as CLIP's does; None if it can.

    transformers makes a tokenizer of missing or empty files and says nothing.
    """
    entries = len(tokenizer)
    if entries < BYTE_LEVEL:
        return f"its vocabulary has {entries} entries"

    stems = [entry.removesuffix("</w>") for entry in tokenizer.get_vocab() if "</w>" in entry]
    words = sorted(stem for stem in stems if len(stem) > 2 and stem.isascii() and stem.isalpha())
    some = words[:: len(words) // WORDS + 1]
    if not some:
        return None

    read = tokenizer(some, add_special_tokens=False).input_ids
    whole = sum(len(ids) == 1 for ids in read)
    if 2 * whole < len(some):
        return f"its merges do not belong to its vocabulary ({some[0]!r} is {len(read[0])} tokens)"
    return None


def _run_once(pipe: Any, name: str) -> None:
    """Raises UserError if the parts do not fit one another, or give numbers that are not finite."""
    levels = len(pipe.unet.config.block_out_channels) - 1
    side = 2 ** max(levels, 3)
    outputs = {}

    try:
        tokens = pipe.tokenizer("a photo of a cat", padding="max_length", return_tensors="pt")
        text = pipe.text_encoder(tokens.input_ids).last_hidden_state
        outputs["text_encoder"] = text

        z = torch.linspace(-1, 1, 4 * side * side).view(1, 4, side, side)
        outputs["unet"] = pipe.unet(z, 1, text, return_dict=False)[0] + z
        outputs["vae"] = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
    except MISFITS as error:
        raise UserError(
            f"base {name}: its parts do not work together ({reason_of(error)}); get it again"
        ) from None

    for part, output in outputs.items():
        require(
            is_finite(output),
            f"base {name}: its {part} gives numbers that are not finite; get it again",
        )
