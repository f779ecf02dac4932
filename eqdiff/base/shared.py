"""The weights that two UNets share, and what must not happen to them.

The reference UNet is the base's but for the weights that are trained: 19 of 860 million numbers of
Stable Diffusion 1.x. So it has copies of these alone. Moving either UNet, or changing its
precision, does the same to both. What changes the values of one would reach the other unseen: a
LoRA that is fused, or weights loaded from a file.

Axes: K the numbers that are looked at.
"""

import torch
from torch import Tensor, nn

LOOKS = 16  # numbers of each weight that are looked at
COARSEST = torch.bfloat16  # a precision that weights may have had in between


def shares(first: nn.Module, second: nn.Module) -> bool:
    """Whether a weight of the one is a weight of the other too."""
    own = {id(weight) for weight in first.parameters()}
    return any(id(weight) in own for weight in second.parameters())


@torch.no_grad()
def looks(module: nn.Module | None) -> Tensor:
    """A few numbers of each weight (K), to tell later whether somebody has changed them."""
    if module is None:
        return torch.zeros(0)
    numbers = [weight.flatten() for weight in module.parameters() if not weight.is_meta]
    seen = [each[:: max(1, len(each) // LOOKS)][:LOOKS].float() for each in numbers]
    return torch.cat(seen).cpu() if seen else torch.zeros(0)


def changed(module: nn.Module | None, before: Tensor) -> bool:
    """Whether weights are not what they were at `looks`, beyond what precisions round off.

    Numbers that are not finite do not count: eqdiff/finite.py names their weight.
    """
    if module is None:
        return False
    dtypes = {COARSEST, *(weight.dtype for weight in module.parameters())}
    kinds = [torch.finfo(dtype) for dtype in dtypes]
    share = max(kind.eps for kind in kinds)
    least = max(1e-6, *(kind.tiny * kind.eps for kind in kinds))  # what is smaller becomes 0
    now = looks(module)
    same = torch.isclose(now, before, rtol=share, atol=least) | ~now.isfinite()
    return not bool(same.all())
