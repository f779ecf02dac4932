"""The training data without a cache (`--no_latent_cache`): the VAE runs at every step, on augmentations never seen.

Axes: n photos, m class images, B batch, R side [pixels], h,w latent size.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eqdiff.config import TrainConfig
from eqdiff.data import Subject
from eqdiff.frequency import apply_band
from eqdiff.latents import Encode, Posterior, augmented, band_filter, grown_masks, latent_masks, subject_masks


@dataclass(frozen=True)
class LiveLatents:
    """`Latents` that are encoded when they are drawn. classes: pictures (m,3,R,R), None without prior preservation."""

    subject: Subject
    classes: Tensor | None
    config: TrainConfig
    encode: Encode
    photo_means: Tensor
    subject_masks: Tensor
    noise_masks: Tensor

    @property
    def class_count(self) -> int:
        return 0 if self.classes is None else len(self.classes)

    def target(self, photos: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        return self._drawn(apply_band(self.subject.images[photos], bands, band_filter(self.config)), generator)

    def reference(self, photos: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        rows = photos.tolist()
        images, masks = augmented(self.subject.images, self.subject.masks, rows, self.config, generator)
        z_r = self._drawn(images, generator)
        return z_r, latent_masks(masks, z_r.shape[-2:], self.config)

    def class_image(self, images: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        return self._drawn(apply_band(self.classes[images], bands, band_filter(self.config)), generator)

    def class_reference(self, images: Tensor, generator: Generator) -> Tensor:
        pictures = self.classes[images]
        whole = torch.ones_like(pictures[:, :1])
        copies, _ = augmented(pictures, whole, range(len(pictures)), self.config, generator)
        return self._drawn(copies, generator)

    def _drawn(self, pictures: Tensor, generator: Generator) -> Tensor:
        return Posterior(*self.encode(pictures)).sample((torch.arange(len(pictures)),), generator)


def prepare_live(subject: Subject, class_images: Tensor | None, config: TrainConfig, encode: Encode) -> LiveLatents:
    """`latents.prepare`, but the pictures stay pictures; only the photos' means are encoded now."""
    means, _ = encode(subject.images)
    masks = subject_masks(subject, means.shape[-2:], config)
    return LiveLatents(subject, class_images, config, encode, means, masks, grown_masks(masks, config))
