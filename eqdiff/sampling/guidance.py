"""DreamMatcher's semantic matching guidance: the predicted picture is pulled to the photo.

Departures. The paper and the release subtract the gradient from the noise, which takes the
predicted picture away from the photo, wherever the denoiser's Jacobian is positive. Here it is
added; a negative strength is the printed sign. The release's gradient lacks every attention.

Axes: B rows, h, w latent size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eqdiff.sampling.inversion import noise_of


def clean_of(prediction: Tensor, z: Tensor, alpha_bar: Tensor, kind: str) -> Tensor:
    """x_0 (B,4,h,w) behind a prediction for z at alpha_bar; kind: the prediction_type."""
    eps = noise_of(prediction, z, alpha_bar, kind)
    return (z - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def distance(x_0: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """D (B,): mean square distance of x_0 from `wanted` (B,4,h,w) under weight (B,1,h,w).

    0 where there is no weight.
    """
    total = (weight * (wanted - x_0).square()).sum((1, 2, 3))
    return total / (x_0.shape[1] * weight.sum((1, 2, 3))).clamp(min=1)


def pull(
    predict: Callable[[Tensor], Tensor],
    z: Tensor,
    alpha_bar: Tensor,
    kind: str,
    wanted: Tensor,
    weight: Tensor,
) -> Tensor:
    """sigma dD/dz (B,4,h,w) at z (B,4,h,w): what is added to the noise for a strength of 1.

    predict: z -> what the UNet predicts, with gradients. wanted, weight: see `distance`.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        x_0 = clean_of(predict(z).float(), z.float(), alpha_bar, kind)
        (gradient,) = torch.autograd.grad(distance(x_0, wanted, weight).sum(), z)
    return (1 - alpha_bar).sqrt() * gradient.float()


def shifted(prediction: Tensor, shift: Tensor, alpha_bar: Tensor, kind: str) -> Tensor:
    """The prediction whose noise is that of `prediction` plus `shift`: (B,4,h,w)."""
    if kind == "v_prediction":
        return prediction + shift / alpha_bar.sqrt()
    if kind == "sample":
        return prediction - shift * ((1 - alpha_bar) / alpha_bar).sqrt()
    return prediction + shift
