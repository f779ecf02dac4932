"""Compresses the weights of a concept: each matrix's change, as a product of two thin matrices.

The change of an (m,n) matrix is its difference to what training started from. A singular value s of
it carries the energy s^2 and costs m + n bytes and a scale. Of all matrices together, the values
with the most energy for their cost are kept until the budget is used. For a given size no other
choice of ranks leaves a smaller error in the weights, up to the last value that still fits.
Matrices that changed little, or along few directions, leave their bytes to the others; an equal
share of energy for each would not do that.

The factors are stored in 8 bits. Singular vectors have no outliers, so rounding them costs a
ten-thousandth of their energy, and 16 bits would halve the ranks.
"""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from eqdiff.attention import RRAProcessor
from eqdiff.model import Customized

# W = start + up @ diag(scale) @ down, with up (m,r) and down (r,n) in int8; r may be 0
UP = ".up"
DOWN = ".down"
SCALES = "factors.scale"  # fp32, those of all matrices in the order of their names
LEVELS = 127
SCALE_BYTES = 4
Tensors = dict[str, Tensor]


class Split(NamedTuple):
    """A difference (m,n) by its singular values: up (m,k), s (k,), down (k,n), at full rank."""

    up: Tensor
    s: Tensor
    down: Tensor

    @property
    def cost(self) -> int:
        """Bytes that one rank costs."""
        return len(self.up) + self.down.shape[1] + SCALE_BYTES


@torch.no_grad()
def start_values(model: Customized) -> Tensors:
    """The concept parameters of `model` as they were before training, fp32, without the token rows.

    These are the base's own weights, and the weights of newly made RRA processors. What the model
    has learned since does not matter.
    """
    start = {f"unet.{name}": value.float() for name, value in model.base_values.items()}

    for site in model.sites:
        path = site.removesuffix(".processor")
        prefix = f"{path}."
        own = {
            name.removeprefix(prefix): value
            for name, value in model.base_values.items()
            if name.startswith(prefix)
        }
        layer = copy.deepcopy(model.unet.get_submodule(path))
        layer.load_state_dict(own, strict=False)

        fresh = RRAProcessor(layer, site, gate_init=model.recipe.gate_init)
        for name, value in fresh.named_parameters():
            start[f"unet.{site}.{name}"] = value.detach().float()
    return start


def split(difference: Tensor) -> Split:
    """Singular value decomposition of (m, ...), taken as (m,n)."""
    up, s, down = torch.linalg.svd(difference.float().flatten(1), full_matrices=False)
    return Split(up, s, down)


def ranks_within(splits: Mapping[str, Split], budget: int) -> dict[str, int]:
    """How many singular values of each matrix to keep within `budget` bytes, by the rule above."""
    gains = []
    for name, svd in splits.items():
        for place, s in enumerate(svd.s.tolist()):
            gains.append((s**2 / svd.cost, -place, name))

    ranks = dict.fromkeys(splits, 0)
    left = budget
    for gain, place, name in sorted(gains, reverse=True):
        # a matrix keeps its largest values: once one is left out, that matrix is done
        if gain > 0 and ranks[name] == -place and splits[name].cost <= left:
            ranks[name] += 1
            left -= splits[name].cost
    return ranks


def split_all(parameters: Tensors, start: Tensors) -> dict[str, Split]:
    """The differences of all matrices that have a start value.

    Other parameters (token rows, biases) are left out: they are stored whole.
    """
    return {
        name: split(value.to(start[name].device) - start[name])
        for name, value in parameters.items()
        if name in start and value.ndim > 1
    }


def factors(splits: Mapping[str, Split], ranks: Mapping[str, int]) -> Tensors:
    """`<name>.up` (m,r) and `<name>.down` (r,n), int8, and the scales of all matrices."""
    stored = {}
    scales = [torch.zeros(0)]

    for name, svd in sorted(splits.items()):
        rank = ranks[name]
        up, up_scale = _rounded(svd.up[:, :rank], 0)
        down, down_scale = _rounded(svd.down[:rank], 1)
        stored[name + UP] = up
        stored[name + DOWN] = down
        scales.append((up_scale * svd.s[:rank] * down_scale).cpu())

    stored[SCALES] = torch.cat(scales)
    return stored


def _rounded(vectors: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """Vectors along a dimension of a matrix -> int8 on the CPU, and the scale of each: (r,)."""
    largest = torch.linalg.vector_norm(vectors, torch.inf, dim=along, keepdim=True)
    scale = largest.clamp_min(1e-12) / LEVELS
    levels = (vectors / scale).round().to(torch.int8)
    return levels.cpu().contiguous(), scale.flatten()


def kept_energy(splits: Mapping[str, Split], ranks: Mapping[str, int]) -> float:
    """The share of the differences' energy that these ranks keep, 0 to 1.

    Energy is the sum of squares over all matrices. Without any change the share is 1.
    """
    total = sum(float(svd.s.square().sum()) for svd in splits.values())
    kept = sum(float(svd.s[: ranks[name]].square().sum()) for name, svd in splits.items())
    return kept / total if total else 1.0


def is_compressed(stored: Tensors) -> bool:
    """Whether these tensors hold factors, as `factors` makes them."""
    return SCALES in stored


def expand(stored: Tensors, start: Tensors) -> Tensors:
    """The parameters, fp32, from the output of `factors` and the tensors that were stored whole.

    Malformed factors are returned unchanged; the caller's key check rejects them. They are
    malformed if one has no partner or no start, stands beside its own product, or has a shape that
    does not fit.
    """
    names = sorted(name.removesuffix(UP) for name in stored if name.endswith(UP))
    if not all(_fits(stored, start, name) for name in names):
        return stored
    ranks = [stored[name + UP].shape[1] for name in names]
    if stored[SCALES].shape != (sum(ranks),):
        return stored

    parameters = {name: value for name, value in stored.items() if name != SCALES}
    for name, scale in zip(names, stored[SCALES].split(ranks), strict=True):
        up = parameters.pop(name + UP).float()
        down = parameters.pop(name + DOWN).float()
        change = (up * scale @ down).view_as(start[name])
        parameters[name] = start[name] + change.to(start[name].device)
    return parameters


def _fits(stored: Tensors, start: Tensors, name: str) -> bool:
    """Whether a matrix has both factors, and their shapes multiply to its own."""
    if name not in start or start[name].ndim < 2 or name in stored or name + DOWN not in stored:
        return False

    m, n = start[name].flatten(1).shape
    up = stored[name + UP]
    down = stored[name + DOWN]
    if up.ndim != 2 or down.ndim != 2:
        return False
    return (len(up), down.shape[1]) == (m, n) and up.shape[1] == len(down)
