"""Losses as running means, as a whole and by the noise's strength.

One batch's loss says little: it depends above all on the t that was drawn. Nothing is read from
the device until `read`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

KEPT = 0.98  # of a mean's weight at each new value: it spans about the last 50
BANDS = 4  # of t, equally wide
BY_T = "by_t"


class RunningMeans:
    """Fading means of named losses, and of the diffusion loss in each band of t.

    A value that is not finite counts for nothing. A resumed training begins anew.
    """

    def __init__(self, timesteps: int) -> None:
        """timesteps: the length of the noise schedule."""
        self.timesteps = timesteps
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Adds a step's losses, scalars."""
        for name, value in losses.items():
            self._add(name, value.detach()[None])

    def add_by_time(self, t: Tensor, errors: Tensor) -> None:
        """Adds each sample's error (B,) to the band of its t (B,)."""
        band = t * BANDS // self.timesteps
        for number, name in enumerate(self._bands()):
            self._add(name, torch.where(band == number, errors.detach(), torch.nan))

    def _bands(self) -> list[str]:
        """The name of each band of t: its first and last timestep."""
        bounds = [self.timesteps * number // BANDS for number in range(BANDS + 1)]
        return [f"{BY_T}/{bounds[n]}-{bounds[n + 1] - 1}" for n in range(BANDS)]

    def _add(self, name: str, values: Tensor) -> None:
        finite = values.isfinite()
        count = finite.sum()
        total = torch.where(finite, values, 0.0).double().sum()

        kept = KEPT**count
        self.sums[name] = self.sums.get(name, 0.0) * kept + total
        self.weights[name] = self.weights.get(name, 0.0) * kept + count

    def read(self) -> dict[str, dict[str, float]]:
        """{"mean": loss -> its mean, "by_t": band -> its mean}, those that have a value."""
        names = list(self.sums)
        if not names:
            return {"mean": {}, BY_T: {}}
        sums = torch.stack([self.sums[name] for name in names]).tolist()
        weights = torch.stack([self.weights[name] for name in names]).tolist()

        means: dict[str, dict[str, float]] = {"mean": {}, BY_T: {}}
        for name, total, weight in zip(names, sums, weights, strict=True):
            kind, _, band = name.rpartition("/")
            if weight:
                means[kind or "mean"][band] = round(total / weight, 5)
        return means
