"""AdamW whose step on weight matrices is Muon's: the momentum, orthogonalized (Jordan et al. 2024).

Every singular direction of a matrix moves alike. In a trial, 150 steps from the same weights on the
same draws, the base's loss came out 2 % lower than with AdamW.

torch.optim.Muon works in bf16 always, which costs 10 s a step on a CPU without bf16 units, and
takes no convolutions. Ours uses bf16 where it is fast: there it takes a third of the time of fp32.

Several processes share the work. Each orthogonalizes the matrices that it owns, then they exchange
them.
"""

from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

MOMENTUM = 0.95
RMS = 0.2  # size of the update, about AdamW's, so that one rate serves both (Liu et al. 2025)
FEWEST_ROWS = 16  # smaller matrices, like the convolution to 4 channels, are left to AdamW
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@cache
def fast_type(device: str) -> torch.dtype:
    """bf16 on a GPU and on a CPU that multiplies matrices of it, else fp32."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.is_file() else ""
    fast = device != "cpu" or "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.bfloat16 if fast else torch.float32


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of a matrix, or of each of a stack.

    All singular values of the result are near 1.
    """
    a, b, c = NEWTON_SCHULZ
    rows, columns = matrix.shape[-2:]
    x = matrix.mT if rows > columns else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)

    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x

    return x.mT if rows > columns else x


def way_of(update: Tensor) -> tuple[float, Tensor]:
    """How far and where matrices move, for a rate of 1: a size, and U V^T of one or of a stack."""
    direction = orthogonalize(update.to(fast_type(update.device.type)))
    # an orthogonal matrix has mean square 1 / max(shape)
    return RMS * max(update.shape[-2:]) ** 0.5, direction


def shares_of(matrices: list[Tensor], processes: int) -> list[int]:
    """The process that owns each matrix: the largest first, to whoever has least to do."""
    cost = [p.numel() * min(len(p), p[0].numel()) for p in matrices]
    load = [0] * processes
    owners = [0] * len(matrices)

    for i in sorted(range(len(matrices)), key=lambda i: -cost[i]):
        owners[i] = load.index(min(load))
        load[owners[i]] += cost[i]
    return owners


class Muon(torch.optim.AdamW):
    """Muon for matrices and convolutions, AdamW for all else.

    All else is embeddings, norms, biases and very small matrices.
    """

    def __init__(self, module: nn.Module, *, lr: float, weight_decay: float) -> None:
        tables = [m for m in module.modules() if isinstance(m, nn.Embedding)]
        embeddings = {id(p) for table in tables for p in table.parameters()}
        matrices = []
        others = []
        for p in module.parameters():
            if not p.requires_grad:
                continue
            is_matrix = p.ndim >= 2 and len(p) >= FEWEST_ROWS and id(p) not in embeddings
            (matrices if is_matrix else others).append(p)

        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        super().__init__(groups, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)

        together = distributed.is_initialized()
        self.processes = distributed.get_world_size() if together else 1
        self.rank = distributed.get_rank() if together else 0
        self.owners = shares_of(matrices, self.processes)

    def elsewhere(self) -> set[Tensor]:
        """The matrices that other processes move: what this one knows of their momentum is old."""
        owned = zip(self.param_groups[0]["params"], self.owners, strict=True)
        return {p for p, owner in owned if owner != self.rank}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        for p, owner in zip(group["params"], self.owners, strict=True):
            if owner == self.rank and p.grad is not None:
                self._move(p, group)
            p.grad = None

        self._exchange(group["params"])
        super().step(closure)  # which passes over what has no gradient

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        if "momentum" not in self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        momentum = self.state[p]["momentum"]
        momentum.lerp_(p.grad, 1 - MOMENTUM)
        update = p.grad.lerp(momentum, MOMENTUM).flatten(1)

        size, direction = way_of(update)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * size * direction.view_as(p))

    def _exchange(self, matrices: list[Tensor]) -> None:
        """Every process takes each matrix from its owner."""
        if self.processes == 1:
            return

        for source in range(self.processes):
            owned = [p for p, owner in zip(matrices, self.owners, strict=True) if owner == source]
            flat = torch.cat([p.flatten() for p in owned])
            distributed.broadcast(flat, source)
            for p, part in zip(owned, flat.split([p.numel() for p in owned]), strict=True):
                p.copy_(part.view_as(p))


class CapturedMuon(Muon):
    """Muon whose step a CUDA graph can hold: rates are tensors, equal shapes go together."""

    def __init__(self, module: nn.Module, *, weight_decay: float) -> None:
        super().__init__(module, lr=1e-3, weight_decay=weight_decay)
        device = next(module.parameters()).device
        for group in self.param_groups:
            group["lr"] = torch.zeros((), device=device)
            group["capturable"] = device.type == "cuda"

        alike = defaultdict(list)
        for p in self.param_groups[0]["params"]:
            alike[p.flatten(1).shape].append(p)
        self.alike = list(alike.values())
        self.momenta = [torch.zeros_like(self._stacked(group)) for group in self.alike]

    def set_rates(self, matrices: float, others: float) -> None:
        for group in self.param_groups:
            group["lr"].fill_(matrices if group["muon"] else others)

    @staticmethod
    def _stacked(matrices: list[Tensor]) -> Tensor:
        return torch.stack([matrix.flatten(1) for matrix in matrices])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        for matrices, momentum in zip(self.alike, self.momenta, strict=True):
            gradients = self._stacked([p.grad for p in matrices])
            momentum.lerp_(gradients, 1 - MOMENTUM)
            update = gradients.lerp(momentum, MOMENTUM)

            size, direction = way_of(update)
            moves = group["lr"] * size * direction
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            parts = [move.view_as(p) for move, p in zip(moves, matrices, strict=True)]
            torch._foreach_sub_(matrices, parts)
            for p in matrices:
                p.grad = None

        torch.optim.AdamW.step(self)  # which passes over what has no gradient
