"""A concept in few bytes: of each matrix the difference to what training started from, as a product of two thin ones.

The rule. A singular value s of the difference of an (m,n) matrix carries the energy s^2 and costs m + n bytes and a
scale. Of all matrices together those with the most energy for their cost are kept until the budget is used: for a given
size no other choice of ranks leaves a smaller error in the weights (up to the last value that still fits). Matrices
that changed little, or along few directions, so leave their bytes to the others; a share of energy the same for all
would not. 8 bits: singular vectors have no outliers, rounding them costs a ten-thousandth of their energy, and 16 bits
would halve the ranks.
"""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from eqdiff.attention import RRAProcessor
from eqdiff.model import EqDiff

UP, DOWN = ".up", ".down"  # W = start + up @ diag(scale) @ down: int8 (m,r) and (r,n), r may be 0
SCALES = "factors.scale"  # fp32, those of all matrices in the order of their names
LEVELS, SCALE_BYTES = 127, 4
Tensors = dict[str, Tensor]


class Split(NamedTuple):
    """The singular values of a difference (m,n), and its factors at full rank: up (m,k), s (k,), down (k,n)."""

    up: Tensor
    s: Tensor
    down: Tensor

    @property
    def cost(self) -> int:
        """Bytes a rank costs."""
        return len(self.up) + self.down.shape[1] + SCALE_BYTES


@torch.no_grad()
def start_values(model: EqDiff) -> Tensors:
    """What the concept parameters of `model` are before training, without the token rows: the base's own weights, and
    those of RRA processors made anew. What the model has learned since does not matter. fp32."""
    start = {f"unet.{name}": value.float() for name, value in model.former.items()}
    for site in model.sites:
        path = site.removesuffix(".processor")
        layer = copy.deepcopy(model.unet.get_submodule(path))
        own = {n.removeprefix(f"{path}."): v for n, v in model.former.items() if n.startswith(f"{path}.")}
        layer.load_state_dict(own, strict=False)
        fresh = RRAProcessor(layer, site, gate_init=model.gate_init)
        start |= {f"unet.{site}.{name}": value.detach().float() for name, value in fresh.named_parameters()}
    return start


def split(difference: Tensor) -> Split:
    """Singular value decomposition of (m, ...), taken as (m,n)."""
    up, s, down = torch.linalg.svd(difference.float().flatten(1), full_matrices=False)
    return Split(up, s, down)


def ranks_within(splits: Mapping[str, Split], budget: int) -> dict[str, int]:
    """How many singular values of each matrix to keep within a budget [bytes], by the module's rule."""
    gains = [(s**2 / one.cost, -place, name) for name, one in splits.items() for place, s in enumerate(one.s.tolist())]
    ranks, left = dict.fromkeys(splits, 0), budget
    for gain, place, name in sorted(gains, reverse=True):
        # in the order of their size within a matrix: one left out ends its matrix
        if gain > 0 and ranks[name] == -place and splits[name].cost <= left:
            ranks[name] += 1
            left -= splits[name].cost
    return ranks


def split_all(parameters: Tensors, start: Tensors) -> dict[str, Split]:
    """The differences of all matrices that have a start; others (token rows, biases) are stored whole."""
    return {
        name: split(value.to(start[name].device) - start[name])
        for name, value in parameters.items()
        if name in start and value.ndim > 1
    }


def factors(splits: Mapping[str, Split], ranks: Mapping[str, int]) -> Tensors:
    """`<name>.up` (m,r) and `<name>.down` (r,n), int8, and the scales of all."""
    stored, scales = {}, [torch.zeros(0)]
    for name, one in sorted(splits.items()):
        rank = ranks[name]
        up, up_scale = _rounded(one.up[:, :rank], 0)
        down, down_scale = _rounded(one.down[:rank], 1)
        stored |= {name + UP: up, name + DOWN: down}
        scales.append((up_scale * one.s[:rank] * down_scale).cpu())
    return stored | {SCALES: torch.cat(scales)}


def _rounded(vectors: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """Vectors along a dimension of a matrix -> int8 on the CPU, and by what to multiply each: (r,)."""
    scale = torch.linalg.vector_norm(vectors, torch.inf, dim=along, keepdim=True).clamp_min(1e-12) / LEVELS
    return (vectors / scale).round().to(torch.int8).cpu().contiguous(), scale.flatten()


def kept_energy(splits: Mapping[str, Split], ranks: Mapping[str, int]) -> float:
    """Share of the differences' energy (sum of squares over all matrices) that these ranks keep."""
    total = sum(float(one.s.square().sum()) for one in splits.values())
    kept = sum(float(one.s[: ranks[name]].square().sum()) for name, one in splits.items())
    return kept / total if total else 1.0


def is_compressed(stored: Tensors) -> bool:
    return SCALES in stored


def expand(stored: Tensors, start: Tensors) -> Tensors:
    """The parameters again, fp32, from what `factors` made and what was stored whole.

    As it is, whole, if a factor has no partner or no start, stands beside its own product, or has a shape that does not
    fit: whoever checks the names finds it.
    """
    names = sorted(name.removesuffix(UP) for name in stored if name.endswith(UP))
    if not all(_fits(stored, start, name) for name in names):
        return stored
    ranks = [stored[name + UP].shape[1] for name in names]
    if stored[SCALES].shape != (sum(ranks),):
        return stored
    parameters = {name: value for name, value in stored.items() if name != SCALES}
    for name, scale in zip(names, stored[SCALES].split(ranks), strict=True):
        up, down = parameters.pop(name + UP).float(), parameters.pop(name + DOWN).float()
        parameters[name] = start[name] + (up * scale @ down).view_as(start[name]).to(start[name].device)
    return parameters


def _fits(stored: Tensors, start: Tensors, name: str) -> bool:
    if name not in start or start[name].ndim < 2 or name in stored or name + DOWN not in stored:
        return False
    (m, n), up, down = start[name].flatten(1).shape, stored[name + UP], stored[name + DOWN]
    return up.ndim == down.ndim == 2 and (len(up), down.shape[1]) == (m, n) and up.shape[1] == len(down)
