"""A concept in few bytes: of each matrix the difference to what training started from, as a product of two thin ones.

The rule. A singular value s of the difference of an (m,n) matrix costs m + n numbers and carries the energy s^2. Of all
matrices together those with the most energy for their cost are kept until the budget is used: for a given size no other
choice of ranks leaves a smaller error in the weights (up to the last value that still fits). Matrices that changed
little, or along few directions, so leave their bytes to the others; a share of energy the same for all would not.
"""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from eqdiff.attention import RRAProcessor
from eqdiff.model import EqDiff

UP, DOWN = ".up", ".down"  # W = start + up @ down, of shapes (m,r) and (r,n); r may be 0
Tensors = dict[str, Tensor]


class Split(NamedTuple):
    """The singular values of a difference (m,n), and its factors at full rank: up (m,k), s (k,), down (k,n)."""

    up: Tensor
    s: Tensor
    down: Tensor

    @property
    def cost(self) -> int:
        """Numbers a rank costs: m + n."""
        return len(self.up) + self.down.shape[1]


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


def ranks_within(splits: Mapping[str, Split], numbers: int) -> dict[str, int]:
    """How many singular values of each matrix to keep within a budget of `numbers` (the module's rule).

    No matrix gets so many that its factors would be as large as itself.
    """
    most = {name: (one.s.numel() and len(one.up) * one.down.shape[1] // one.cost) for name, one in splits.items()}
    gains = [
        (float(s) ** 2 / one.cost, -place, name)
        for name, one in splits.items()
        for place, s in enumerate(one.s[: most[name]].tolist())
    ]
    ranks, left = dict.fromkeys(splits, 0), numbers
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
    """`<name>.up` (m,r) and `<name>.down` (r,n), each with the root of the singular values in it."""
    stored: Tensors = {}
    for name, one in splits.items():
        rank = ranks[name]
        root = one.s[:rank].sqrt()
        stored[name + UP] = (one.up[:, :rank] * root).cpu().contiguous()
        stored[name + DOWN] = (root[:, None] * one.down[:rank]).cpu().contiguous()
    return stored


def kept_energy(splits: Mapping[str, Split], ranks: Mapping[str, int]) -> float:
    """Share of the differences' energy (sum of squares over all matrices) that these ranks keep."""
    total = sum(float(one.s.square().sum()) for one in splits.values())
    kept = sum(float(one.s[: ranks[name]].square().sum()) for name, one in splits.items())
    return kept / total if total else 1.0


def is_compressed(stored: Tensors) -> bool:
    return any(name.endswith((UP, DOWN)) for name in stored)


def expand(stored: Tensors, start: Tensors) -> Tensors:
    """The parameters again, fp32, from what `factors` made and what was stored whole.

    Factors without a partner, of shapes that do not fit, or beside their own product stay as they are: whoever checks
    the names finds them.
    """
    parameters = dict(stored)
    for name, base in start.items():
        up, down = stored.get(name + UP), stored.get(name + DOWN)
        if up is None or down is None or name in stored or base.ndim < 2:
            continue
        m, n = base.flatten(1).shape
        if up.ndim == down.ndim == 2 and (len(up), down.shape[1]) == (m, n) and up.shape[1] == len(down):
            parameters[name] = base + (up.float() @ down.float()).view_as(base).to(base.device)
            del parameters[name + UP], parameters[name + DOWN]
    return parameters
