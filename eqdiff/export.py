"""A concept as files that plain tools read: S_ori as a textual inversion, the UNet's own weights as a patch."""

from torch import Tensor

from eqdiff.concept import Concept
from eqdiff.config import UserError

KIND = "eqdiff"  # the key of a file's metadata that says which of these it is
TEXTUAL_INVERSION, KV_PATCH = "textual-inversion-1", "kv-patch-1"


# Eq. 5: S_ori = S_LF + S_HF; without FDTE the one row.
def textual_inversion(concept: Concept) -> dict[str, Tensor]:
    """{"emb_params": (1,D)}: one tensor under any name is what diffusers, A1111 and ComfyUI take for an embedding."""
    # added as SubjectTokens adds them, so that pictures agree bit for bit
    return {"emb_params": concept.parameters["tokens.rows"].sum(0, keepdim=True)}


def kv_patch(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the concept's parameters, expanded, that are the UNet's own, by their names in a plain UNet.

    UserError: there are none (a concept trained with --unet_weights none).
    """
    own = {
        n.removeprefix("unet."): v for n, v in parameters.items() if n.startswith("unet.") and ".processor." not in n
    }
    if not own:
        raise UserError("this concept changes no weights of the UNet's own: export it as a textual_inversion alone")
    return own


def about(kind: str, concept: Concept) -> dict[str, str]:
    """What an exported file's metadata says."""
    base = {"base_fingerprint": concept.base_fingerprint, "concept": concept.hash}
    return {"format": "pt", KIND: kind, "class_word": concept.settings["class_word"], **base}
