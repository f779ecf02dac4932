"""The masks of photos at the size of the latents, as the settings want them.

Axes: n photos, R side [pixels], h,w latent size.
"""

from torch import Tensor

from eqdiff.config import TrainConfig, UserError
from eqdiff.data import Subject
from eqdiff.masking import dilate, dilation_radius, to_latent_mask


def latent_masks(masks: Tensor, size: tuple[int, int], config: TrainConfig) -> Tensor:
    """Masks (N,1,R,R) at latent size: (N,1,h,w)."""
    method = "area" if config.binary_masks else "nearest"  # grey masks stay grey, as in the release
    return to_latent_mask(masks, size, method=method)


def subject_masks(subject: Subject, size: tuple[int, int], config: TrainConfig) -> Tensor:
    """The photos' masks at latent size: (n,1,h,w). UserError: one is empty there."""
    masks = latent_masks(subject.masks, size, config)
    lost = [name for name, mask in zip(subject.names, masks, strict=True) if not mask.any()]
    if lost:
        raise UserError(
            f"{lost[0]}: its mask is empty in the latents ({size[1]}x{size[0]} cells); use a closer photo of the "
            "subject, a larger --resolution, or --binary_masks"
        )
    return masks


def grown_masks(masks: Tensor, config: TrainConfig) -> Tensor:
    """Masks (N,1,h,w) as Eq. 6-7 take them."""
    return dilate(masks, dilation_radius(config.mask_dilation, masks.shape[-1]))
