"""AdamW whose step on weight matrices is Muon's: the momentum, orthogonalized (Jordan et al. 2024).

Every singular direction of a matrix moves alike. In a trial, 150 steps from the same weights on the same draws, the
base's loss came out 2 % lower than with AdamW. torch.optim.Muon works in bf16 whatever it is given, which costs 10 s a
step on a CPU without bf16 units, and takes no convolutions.
"""

from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
RMS = 0.2  # size of the update, about AdamW's, so that one rate serves both (Liu et al. 2025)
FEWEST_ROWS = 16  # smaller matrices, like the convolution to 4 channels, are left to AdamW
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of (rows, columns): singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


class Muon(torch.optim.AdamW):
    """Muon for matrices and convolutions, AdamW for embeddings, norms, biases and very small matrices."""

    def __init__(self, module: nn.Module, *, lr: float, weight_decay: float) -> None:
        embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        matrices, others = [], []
        for p in module.parameters():
            is_matrix = p.ndim >= 2 and len(p) >= FEWEST_ROWS and id(p) not in embeddings
            (matrices if is_matrix else others).append(p)
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        super().__init__(groups, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            if group["muon"]:
                for p in group["params"]:
                    self._move(p, group)
        super().step(closure)  # which passes over what has no gradient

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        if p.grad is None:
            return
        if "momentum" not in self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        momentum = self.state[p]["momentum"]
        momentum.lerp_(p.grad, 1 - MOMENTUM)
        update = p.grad.lerp(momentum, MOMENTUM).flatten(1)
        size = RMS * max(update.shape) ** 0.5  # an orthogonal matrix has mean square 1 / max(shape)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] * size * orthogonalize(update.float()).view_as(p))
        p.grad = None
