"""The training data as latents: encoded once before the training, or again at every step.

If they are encoded once, a training step is work of the UNet alone. If they are encoded at every
step (`--no_latent_cache`), every reference is a new augmentation.

Axes: n photos, m class images, P augmented references, B batch, R side [pixels], h,w latent size.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eqdiff.data.augment import augment_reference
from eqdiff.data.subject import Subject
from eqdiff.errors import UserError
from eqdiff.frequency import Band, Filter, apply_band
from eqdiff.masking import dilate, dilation_radius, resize_mask
from eqdiff.settings.groups import Draws, Recipe

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Posterior:
    """q(z|x) of pictures, scaled: mean and std (..., 4, h, w)."""

    mean: Tensor
    std: Tensor

    def sample(self, index: tuple[Tensor, ...], generator: Generator) -> Tensor:
        """A draw from the rows at `index`: (B, 4, h, w)."""
        mean = self.mean[index]
        return mean + self.std[index] * torch.randn(mean.shape, generator=generator)


@dataclass(frozen=True)
class TrainingLatents:
    """`Latents` that are all encoded before the training.

    targets: (n, 3 bands). references: (P,), with reference_masks (P,1,h,w) and the number of the
    photo (P,) that each was made from. classes: (m, 3 bands). class_references: (m,), an augmented
    copy of each class image. Both are None without prior preservation.
    """

    targets: Posterior
    subject_masks: Tensor
    noise_masks: Tensor
    references: Posterior
    reference_masks: Tensor
    reference_photos: Tensor
    classes: Posterior | None
    class_references: Posterior | None

    @property
    def photo_means(self) -> Tensor:
        return self.targets.mean[:, Band.FULL]

    @property
    def class_count(self) -> int:
        return 0 if self.classes is None else len(self.classes.mean)

    def target(self, photos: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        return self.targets.sample((photos, bands), generator)

    def reference(self, photos: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        chosen = []
        for photo in photos:
            copies = torch.nonzero(self.reference_photos == photo).flatten()
            chosen.append(copies[torch.randint(len(copies), (1,), generator=generator)])

        rows = torch.cat(chosen)
        return self.references.sample((rows,), generator), self.reference_masks[rows]

    def class_image(self, images: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        return self.classes.sample((images, bands), generator)

    def class_reference(self, images: Tensor, generator: Generator) -> Tensor:
        return self.class_references.sample((images,), generator)


@dataclass(frozen=True)
class LiveLatents:
    """`Latents` that are encoded when they are drawn.

    classes: class images (m,3,R,R) in [-1,1]; None without prior preservation.
    """

    subject: Subject
    classes: Tensor | None
    config: Draws
    encode: Encode
    photo_means: Tensor
    subject_masks: Tensor
    noise_masks: Tensor

    @property
    def class_count(self) -> int:
        return 0 if self.classes is None else len(self.classes)

    def target(self, photos: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        pictures = apply_band(self.subject.images[photos], bands, band_filter(self.config))
        return self._sample(pictures, generator)

    def reference(self, photos: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        rows = photos.tolist()
        images, masks = _augmented(
            self.subject.images, self.subject.masks, rows, self.config, generator
        )
        z_r = self._sample(images, generator)
        return z_r, latent_masks(masks, z_r.shape[-2:], self.config)

    def class_image(self, images: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        pictures = apply_band(self.classes[images], bands, band_filter(self.config))
        return self._sample(pictures, generator)

    def class_reference(self, images: Tensor, generator: Generator) -> Tensor:
        copies = _augmented_whole(self.classes[images], self.config, generator)
        return self._sample(copies, generator)

    def _sample(self, pictures: Tensor, generator: Generator) -> Tensor:
        """A draw from the posterior of each picture: (B,4,h,w)."""
        posterior = Posterior(*self.encode(pictures))
        return posterior.sample((torch.arange(len(pictures)),), generator)


def prepare(
    subject: Subject,
    class_images: Tensor | None,
    config: Draws,
    encode: Encode,
    generator: Generator,
) -> TrainingLatents:
    """Encodes everything that a training draws from.

    That is the photos in three bands, a pool of augmented references, the class images (m,3,R,R) in
    three bands, and an augmented copy of each class image.

    Raises UserError if a photo's mask is empty at the size of the latents.
    """
    targets = _bands(subject.images, config, encode)
    size = targets.mean.shape[-2:]
    masks = _subject_masks(subject, size, config)

    count = len(subject.images)
    photos = torch.arange(max(config.reference_pool, count)) % count
    pool, pool_masks = _augmented(subject.images, subject.masks, photos.tolist(), config, generator)

    classes = None
    class_references = None
    if class_images is not None:
        classes = _bands(class_images, config, encode, filtered=config.filter_prior)
        copies = _augmented_whole(class_images, config, generator)
        class_references = Posterior(*encode(copies))

    return TrainingLatents(
        targets=targets,
        subject_masks=masks,
        noise_masks=_noise_masks(masks, config),
        references=Posterior(*encode(pool)),
        reference_masks=latent_masks(pool_masks, size, config),
        reference_photos=photos,
        classes=classes,
        class_references=class_references,
    )


def prepare_live(
    subject: Subject, class_images: Tensor | None, config: Draws, encode: Encode
) -> LiveLatents:
    """As `prepare`, but only the means of the photos are encoded now.

    Raises UserError if a photo's mask is empty at the size of the latents.
    """
    means, _ = encode(subject.images)
    masks = _subject_masks(subject, means.shape[-2:], config)
    grown = _noise_masks(masks, config)
    return LiveLatents(subject, class_images, config, encode, means, masks, grown)


def band_filter(config: Draws) -> Filter:
    """The filter of Eq. 3-5 with these settings."""
    return Filter(
        config.filter_shape,
        config.low_cutoff,
        config.high_cutoff,
        config.filter_colour,
        config.filter_rectify,
    )


def latent_masks(masks: Tensor, size: tuple[int, int], recipe: Recipe) -> Tensor:
    """Masks (N,1,R,R) at the size of the latents: (N,1,h,w)."""
    return resize_mask(masks, size, binary=recipe.binary_masks)


def _subject_masks(subject: Subject, size: tuple[int, int], config: Draws) -> Tensor:
    """The photos' masks at the size of the latents: (n,1,h,w).

    Raises UserError if one of them is empty there.
    """
    masks = latent_masks(subject.masks, size, config)
    for name, mask in zip(subject.names, masks, strict=True):
        if not mask.any():
            raise UserError(
                f"{name}: its mask is empty in the latents ({size[1]}x{size[0]} cells); "
                "use a closer photo of the subject, a larger --resolution, or --binary_masks"
            )

    return masks


def _noise_masks(masks: Tensor, config: Draws) -> Tensor:
    """Masks (N,1,h,w) dilated for Eq. 6-7."""
    return dilate(masks, dilation_radius(config.mask_dilation, masks.shape[-1]))


def _bands(images: Tensor, config: Draws, encode: Encode, *, filtered: bool = True) -> Posterior:
    """Posteriors (N, 3, 4,h,w) of I_LF, I_HF, I_ori (Eq. 3-5) of images (N,3,R,R).

    filtered: False gives that of I_ori three times.
    """
    if not filtered:
        mean, std = encode(images)
        shape = (-1, len(Band), -1, -1, -1)
        return Posterior(mean[:, None].expand(shape), std[:, None].expand(shape))

    numbers = [torch.full((len(images),), band) for band in Band]
    pairs = [encode(apply_band(images, bands, band_filter(config))) for bands in numbers]
    means = torch.stack([mean for mean, _ in pairs], 1)
    stds = torch.stack([std for _, std in pairs], 1)
    return Posterior(means, stds)


def _augmented(
    images: Tensor, masks: Tensor, rows: Iterable[int], config: Draws, generator: Generator
) -> tuple[Tensor, Tensor]:
    """A new augmentation of each of these rows of images (N,3,R,R) and masks (N,1,R,R)."""
    kind = config.reference_augmentation
    pairs = [augment_reference(images[i], masks[i], kind, generator=generator) for i in rows]
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def _augmented_whole(images: Tensor, config: Draws, generator: Generator) -> Tensor:
    """A new augmentation of each class image (N,3,R,R), of which every pixel counts as subject."""
    whole = torch.ones_like(images[:1, :1]).expand(len(images), -1, -1, -1)
    copies, _ = _augmented(images, whole, range(len(images)), config, generator)
    return copies
