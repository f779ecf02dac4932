"""What attention should look at: the reference-attention loss of the paper's Sec. 4.3 (Eq. 10).

The sums over attention maps are made in the attention layers, see `processors.attention_with_mass`.

Departures from the paper: its norm is read as a mean of squares. The maps of layers of one
resolution are averaged first, then the losses of the resolutions. The release's form "masked" and
its loss on cross-attention are choices.

Axes: B batch, N tokens, h, w latent size.
"""

from typing import Literal

import torch
from torch import Tensor

from eqdiff.masking import at_level


# Eq. 10: L_ra = || rho - M^g ||, rho_i = sum_j A_ij M^r_j.
def reference_attention_loss(
    mass: dict[str, Tensor], target_mask: Tensor, *, form: Literal["all", "masked"]
) -> Tensor:
    """mass: layer -> rho (B,N); target_mask: M^g (B,1,h,w) -> L_ra (B,).

    "all", the paper: (rho - M^g)^2 over every query. "masked", the release: (M^g rho - M^g)^2, so
    that only queries in the subject count. Raises ValueError if there is no layer.
    """
    cut = {"all": True, "masked": False}[form]

    losses = []
    for rho, m_g in _levels(mass, target_mask, binary=cut):
        rho = rho if form == "all" else m_g * rho
        losses.append((rho - m_g).square().mean(1))
    return torch.stack(losses).mean(0)


# L_x of the release (Break-A-Scene's, not in the paper): the subject's map over its maximum is M^g.
def cross_attention_loss(slot_mass: dict[str, Tensor], target_mask: Tensor) -> Tensor:
    """slot_mass: layer -> attention on the slots (B,N); target_mask: M^g (B,1,h,w) -> L_x (B,).

    A sample without a slot has no gradient. Raises ValueError if there is no layer.
    """
    losses = []
    for attention, m_g in _levels(slot_mass, target_mask, binary=False):
        scaled = attention / attention.amax(1, keepdim=True).clamp_min(1e-8)
        losses.append((scaled - m_g).square().mean(1))
    return torch.stack(losses).mean(0)


def _levels(maps: dict[str, Tensor], mask: Tensor, *, binary: bool) -> list[tuple[Tensor, Tensor]]:
    """For each resolution: the mean map of its layers (B,N) fp32, and the mask (B,N).

    Raises ValueError if there are no maps, or if they are not of the mask's batch.
    """
    if not maps or any(len(x) != len(mask) for x in maps.values()):
        shapes = [(name, tuple(x.shape)) for name, x in maps.items()]
        raise ValueError(f"{len(mask)} masks for attention maps {shapes}")

    levels = []
    for tokens in sorted({x.shape[1] for x in maps.values()}):
        of_level = [x.float() for x in maps.values() if x.shape[1] == tokens]
        mean = torch.stack(of_level).mean(0)
        levels.append((mean, at_level(mask, tokens, binary=binary)))
    return levels
