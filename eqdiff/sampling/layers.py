"""The self-attentions in which a picture sees photos with nothing trained: which, and whether."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from eqdiff.errors import require

LAYERS = ("up_blocks.2", "up_blocks.3")  # prefixes of those that are taken if none are named


def sites_of(unet: nn.Module, layers: Sequence[str]) -> list[str]:
    """The self-attentions whose names start with one of `layers`."""
    names = [name for name in unet.attn_processors if name.endswith(".attn1.processor")]
    return [name for name in names if name.startswith(tuple(layers))]


def require_photos(
    flag: str,
    carried: Any,
    layers: Sequence[str],
    attending: frozenset[str],
    *,
    use: str,
    clash: str,
) -> None:
    """Checks that an option can bring the concept's photos into `layers`.

    flag: turns the option on, and flag_layers names its layers. attending: the layers with RRA. For
    messages, use: what the photos are for; clash: what is wrong with RRA in the same layers. Raises
    UserError without a photo, without a layer, or with RRA in one of them.
    """
    require(
        len(carried.concept.references.latents),
        f"{flag}: this concept carries no photo to {use}; give some with --instance_data_dir DIR",
    )

    sites = sites_of(carried.model.unet, layers)
    told = f"{flag}_layers {' '.join(layers)}"
    require(sites, f"{told}: no such self-attention; try {' '.join(LAYERS)}")
    require(not attending & set(sites), f"{flag}: the concept attends to its photo {clash}")
