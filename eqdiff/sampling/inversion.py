"""A photo on its way back to noise: DDIM inversion, and what a UNet sees of it at each step.

The stream of the reference does not depend on the picture that is drawn. So it is made once for a
subject: the latents by inversion, and what layers give at each timestep when it is first needed.

Axes: G texts, h, w latent size, T timesteps of the base.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eqdiff.reference import Features, StepCache

Predict = Callable[[Tensor, int], Tensor]  # z (B,4,h,w), t -> what the UNet predicts


def noise_of(prediction: Tensor, z: Tensor, alpha_bar: Tensor, kind: str) -> Tensor:
    """eps (B,4,h,w) behind a prediction for z at alpha_bar (a scalar).

    kind: the scheduler's prediction_type.
    """
    if kind == "v_prediction":
        return alpha_bar.sqrt() * prediction + (1 - alpha_bar).sqrt() * z
    if kind == "sample":
        return (z - alpha_bar.sqrt() * prediction) / (1 - alpha_bar).sqrt()
    return prediction


def invert(
    predict: Predict,
    z_0: Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: Tensor,
    kind: str = "epsilon",
) -> dict[int, Tensor]:
    """DDIM backwards: timestep -> the latent there (B,4,h,w), in fp32.

    z_0: at the first timestep of the base. timesteps: those of sampling, in any order.
    alphas_cumprod: (T,). kind: the scheduler's prediction_type.
    """
    alphas = alphas_cumprod.to(z_0.device, torch.float32)
    z = z_0.float()
    here = alphas[0]
    latents = {}
    for t in sorted(set(timesteps)):
        there = alphas[t]
        eps = noise_of(predict(z, t).float(), z, there, kind)
        x_0 = (z - (1 - here).sqrt() * eps) / here.sqrt()
        z = there.sqrt() * x_0 + (1 - there).sqrt() * eps
        latents[t] = z
        here = there
    return latents


class ReferenceStream:
    """What a UNet gives of a reference at each step of a schedule, kept where there is room."""

    def __init__(self, latents: dict[int, Tensor], cache_gb: float) -> None:
        """latents: timestep -> (1,4,h,w), in the order of sampling."""
        self.latents = latents
        self._cache = StepCache(cache_gb, len(latents), next(iter(latents.values())).device)

    def features(self, t: float | Tensor, look: Callable[[Tensor, int], Features]) -> Features:
        """What is seen at timestep t. Raises KeyError if t is not in the schedule.

        look: sees it, given the latent and the timestep, if it is not kept.
        """
        step = round(float(t))
        features = self._cache.get(step)
        if features is None:
            features = look(self.latents[step], step)
            self._cache.keep(step, features)
        return features
