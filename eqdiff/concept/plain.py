"""Tensors that plain tools read: S_ori as a textual inversion, and a patch for a plain UNet."""

import torch
from torch import Tensor

from eqdiff.concept.concept import Concept
from eqdiff.errors import UserError, require

KIND = "eqdiff"  # the key in a file's metadata whose value is one of the two below
TEXTUAL_INVERSION = "textual-inversion-1"
KV_PATCH = "kv-patch-1"


# Eq. 5: S_ori = S_LF + S_HF; without FDTE the one row.
def textual_inversion(concept: Concept) -> dict[str, Tensor]:
    """{"emb_params": (q,D)}: diffusers, A1111 and ComfyUI read one tensor under any name.

    q is the number of tokens: 1, but for ICO.

    Raises UserError if the concept has no token of its own, as Infusion's.
    """
    method = concept.recipe.method
    has_token = "tokens.rows" in concept.parameters
    require(has_token, f"a concept of --method {method} has no token that plain tools could read")
    # added as SubjectTokens adds them, so that pictures agree bit for bit
    first = concept.parameters["tokens.rows"].sum(0, keepdim=True)
    rest = concept.parameters.get("tokens.rest", first[:0])
    return {"emb_params": torch.cat([first, rest])}


def kv_patch(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's own weights among a concept's parameters, by their names in a plain UNet.

    parameters: the concept's, expanded.

    Raises UserError if there are none, as in a concept trained with --unet_weights none.
    """
    own = {
        name.removeprefix("unet."): value
        for name, value in parameters.items()
        if name.startswith("unet.") and ".processor." not in name
    }

    if not own:
        raise UserError(
            "this concept changes no weights of the UNet's own: "
            "there is nothing to patch; export it as a textual_inversion, if it has a token"
        )
    return own


def metadata(kind: str, concept: Concept) -> dict[str, str]:
    """The metadata of an exported file. kind: TEXTUAL_INVERSION or KV_PATCH."""
    return {
        "format": "pt",
        KIND: kind,
        "class_word": concept.recipe.class_word,
        "base_fingerprint": concept.base_fingerprint,
        "concept": concept.hash,
    }
