"""Which cell of a reference belongs to which cell of a picture: DreamMatcher's semantic matching.

Small functions of tensors (arXiv 2402.09812, Sec. 4.1-4.2). Departure: the release takes principal
axes by a randomised method, which changes from run to run; here they are exact.

Axes: B rows, C channels, D dimensions of a descriptor, h, w cells, n = h w.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

AXES = 256  # principal axes a level


def principal(x: Tensor, y: Tensor, axes: int = AXES) -> tuple[Tensor, Tensor]:
    """x and y (B,n,C) on the first principal axes of the two together: (B,n,axes) each.

    One basis and one mean a row. There are as many axes as channels, if those are fewer.
    """
    both = torch.cat([x, y], dim=1).float()  # (B,2n,C)
    both = both - both.mean(1, keepdim=True)
    covariance = both.mT @ both  # (B,C,C)
    basis = torch.linalg.eigh(covariance).eigenvectors[..., -axes:]  # they come in rising order
    return tuple((both @ basis).chunk(2, dim=1))


def descriptors(
    x: Sequence[Tensor], y: Sequence[Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """psi^X and psi^Y (B,D,*size) of length 1, from features (B,C,h,w) of several levels.

    Each level is brought to `size`, put on its principal axes, and they are laid end to end.
    """
    found = []
    for level in zip(x, y, strict=True):
        resized = [F.interpolate(z.float(), size, mode="bilinear") for z in level]
        found.append(principal(*(z.flatten(2).mT for z in resized)))

    psi = [torch.cat(parts, dim=-1) for parts in zip(*found, strict=True)]  # (B,n,D)
    psi_x, psi_y = (F.normalize(z, dim=-1).mT.unflatten(-1, size) for z in psi)
    return psi_x, psi_y


def match(psi_x: Tensor, psi_y: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """m and r (B,n) at a layer of `size` cells: picture -> reference, and back.

    psi (B,D,h,w) at any size. The first of equal cells wins.
    """
    if psi_x.shape[-2:] != size:
        psi_x, psi_y = (F.interpolate(z, size, mode="bilinear") for z in (psi_x, psi_y))
        psi_x, psi_y = (F.normalize(z, dim=1) for z in (psi_x, psi_y))

    pairs = []
    for one_x, one_y in zip(psi_x.flatten(2), psi_y.flatten(2), strict=True):
        cosines = one_y.mT @ one_x  # (n,n), one row at a time: they are large
        pairs.append((cosines.argmax(1), cosines.argmax(0)))
    m, r = (torch.stack(each) for each in zip(*pairs, strict=True))
    return m, r


def confidence(m: Tensor, r: Tensor, width: int, limit: Tensor) -> Tensor:
    """U (B,n), 1 where there and back comes within less than `limit` (B,) cells, else 0.

    m, r (B,n): matches in a layer of `width` cells a line.
    """
    back = r.gather(1, m)  # r(m(j))
    start = torch.arange(m.shape[1], device=m.device)
    down = back // width - start // width
    along = back % width - start % width
    return ((down**2 + along**2).sqrt() < limit[:, None]).float()


def matched_values(v_x: Tensor, v_y: Tensor, m: Tensor, weight: Tensor) -> Tensor:
    """V^W = w V^X moved by m + (1 - w) V^Y: (B,n,C), of v (B,n,C), m and weight (B,n)."""
    moved = v_x.gather(1, m[..., None].expand(-1, -1, v_x.shape[-1]))
    w = weight[..., None].to(v_y.dtype)
    return w * moved.to(v_y.dtype) + (1 - w) * v_y
