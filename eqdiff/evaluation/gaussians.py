"""The Wasserstein metric: how far, and how much narrower, a concept is than the base's class.

Infusion (arXiv 2404.14007) has such a metric and never said how it is computed: this definition is
ours. Gaussians are fitted to image features of pictures of the concept, and of the base's pictures
of the class word for the same prompts and seeds:

    W2^2 = |mu1 - mu2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)

Identity must move the mean; a collapse onto a few pictures shows in the trace. Features are
projected to the principal axes of the base's, and each covariance is shrunk towards a multiple of
the identity, for there are few pictures. The floor is the distance of the base to itself, with
other seeds: less than that means nothing.

Axes: N pictures, D width of features, k principal axes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

AXES = 64
SHRINKAGE = 0.1  # share of the identity in each covariance
ENOUGH = 256  # pictures; below it the trace term is mostly noise


class Distance(NamedTuple):
    """W2^2 in its two terms."""

    mean: float
    trace: float

    @property
    def total(self) -> float:
        return self.mean + self.trace


def principal_axes(features: Tensor, count: int = AXES) -> tuple[Tensor, Tensor]:
    """The mean (D,) of features (N,D) and their first principal axes (D,k), k <= count; float64."""
    x = features.double()
    centre = x.mean(0)
    count = min(count, len(x) - 1, x.shape[1])
    _, _, axes = torch.linalg.svd(x - centre, full_matrices=False)
    return centre, axes[:count].T


def wasserstein(features: Tensor, base: Tensor, count: int = AXES) -> Distance:
    """W2^2 of Gaussians fitted to features (N,D) and to the base's (M,D), both on the base's axes.

    Raises ValueError if there are fewer than three of either.
    """
    if min(len(features), len(base)) < 3:
        raise ValueError("three pictures or more are needed for a covariance")

    centre, axes = principal_axes(base, count)
    a, b = ((x.double() - centre) @ axes for x in (features, base))  # (N,k), (M,k)
    first, second = shrunk_covariance(a), shrunk_covariance(b)
    half = _root(first)
    both = _root(half @ second @ half)

    trace = first.trace() + second.trace() - 2 * both.trace()
    return Distance(float((a.mean(0) - b.mean(0)).square().sum()), float(trace.clamp(min=0)))


def shrunk_covariance(x: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """The covariance (k,k) of x (N,k), with a share of its mean variance on the diagonal."""
    covariance = torch.atleast_2d(torch.cov(x.T))
    identity = torch.eye(len(covariance), dtype=x.dtype) * covariance.trace() / len(covariance)
    return (1 - shrinkage) * covariance + shrinkage * identity


def _root(matrix: Tensor) -> Tensor:
    """The root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
