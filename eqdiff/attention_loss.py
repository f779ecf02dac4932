"""What attention should look at (Sec. 4.3, Eq. 10), and masks at the UNet's levels."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def at_level(mask: Tensor, tokens: int, *, nearest: bool) -> Tensor:
    """(B,1,h,w) -> (B,tokens) {0,1} fp32: area mean >= 0.5, but what is not empty stays so; nearest: as the release."""
    h, w = mask.shape[-2:]
    while h * w > tokens:
        h, w = (h + 1) // 2, (w + 1) // 2  # as the UNet halves
    if h * w != tokens:
        raise ValueError(f"{tokens} tokens are no level of a UNet on latents of {tuple(mask.shape[-2:])}")
    if nearest:
        return F.interpolate(mask.float(), (h, w), mode="nearest").flatten(1)
    mean = F.adaptive_avg_pool2d(mask.float(), (h, w)).flatten(1)
    return ((mean >= mean.amax(1, keepdim=True).clamp(max=0.5)) & (mean > 0)).float()


def _levels(maps: dict[str, Tensor], mask: Tensor, *, nearest: bool) -> list[tuple[Tensor, Tensor]]:
    """For each resolution: mean map of its layers (B,N) fp32, mask (B,N). ValueError: no maps, or batches differ."""
    if not maps or any(len(x) != len(mask) for x in maps.values()):
        raise ValueError(f"{len(mask)} masks for attention maps {[(k, tuple(x.shape)) for k, x in maps.items()]}")
    sizes = sorted({x.shape[1] for x in maps.values()})
    means = [torch.stack([x.float() for x in maps.values() if x.shape[1] == n]).mean(0) for n in sizes]
    return [(mean, at_level(mask, mean.shape[1], nearest=nearest)) for mean in means]


# Eq. 10, its norm read as a mean of squares. "all": over every query; "masked": the release, over those in the subject.
def reference_attention_loss(mass: dict[str, Tensor], target_mask: Tensor, *, form: Literal["all", "masked"]) -> Tensor:
    """mass layer -> (B,N), mask (B,1,h,w) -> (B,): mean (rho - M^g)^2 or (M^g rho - M^g)^2. ValueError if empty."""
    levels = _levels(mass, target_mask, nearest={"all": False, "masked": True}[form])
    return torch.stack([((rho if form == "all" else m * rho) - m).square().mean(1) for rho, m in levels]).mean(0)


# The release's L_x (Break-A-Scene's, not in the paper): the placeholder's map over its maximum should be the mask.
def cross_attention_loss(slot_mass: dict[str, Tensor], target_mask: Tensor) -> Tensor:
    """slot_mass layer -> (B,N), mask (B,1,h,w) -> (B,). A sample without slot has no gradient. ValueError if empty."""
    levels = _levels(slot_mass, target_mask, nearest=True)
    maps = [(a / a.amax(1, keepdim=True).clamp_min(1e-8), m) for a, m in levels]
    return torch.stack([(a - m).square().mean(1) for a, m in maps]).mean(0)
