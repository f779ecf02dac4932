"""The training data as latents: everything the VAE has to do is done once, then a step is UNet work only.

Axes: n photos, m class images, P augmented references, B batch, R side [pixels], h,w latent size.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from eqdiff.config import TrainConfig, UserError
from eqdiff.data import Subject, augment_reference
from eqdiff.frequency import Band, Filter, apply_band, draw_bands
from eqdiff.masking import dilate, dilation_radius, to_latent_mask

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
# The release's false size prefixes and how often it puts them there; the photo is never resized to fit them.
SIZE_PREFIXES = (("", 0.394), ("far away ", 0.133), ("very small ", 0.133), ("zoomed in ", 0.17), ("close up ", 0.17))


@dataclass(frozen=True)
class Posterior:
    """q(z|x) of pictures, scaled: mean and std (..., 4, h, w)."""

    mean: Tensor
    std: Tensor

    def sample(self, index: tuple[Tensor, ...], generator: Generator) -> Tensor:
        """A draw of the rows at `index`: (B, 4, h, w)."""
        mean = self.mean[index]
        return mean + self.std[index] * torch.randn(mean.shape, generator=generator)


class Latents(Protocol):
    """Where a step's latents come from: encoded once (`TrainingLatents`) or at every step (`live.LiveLatents`).

    Both draw from the same distribution, photos and images by number (B,), and the generator decides everything.
    subject_masks, noise_masks (n,1,h,w): as it is, and dilated for Eq. 6-7. photo_means (n,4,h,w): of the whole photos.
    """

    subject_masks: Tensor
    noise_masks: Tensor

    @property
    def photo_means(self) -> Tensor: ...

    @property
    def class_count(self) -> int:
        """m; 0 without prior preservation, and then the other two `class_` methods are not for use."""

    def target(self, photos: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        """z0 of photos in these bands: (B,4,h,w)."""

    def reference(self, photos: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """z_r of augmented copies of photos (B,4,h,w), and where the subject is in them (B,1,h,w)."""

    def class_image(self, images: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        """z0 of class images in these bands: (B,4,h,w)."""

    def class_reference(self, images: Tensor, generator: Generator) -> Tensor:
        """z_r of augmented copies of class images: (B,4,h,w)."""


@dataclass(frozen=True)
class TrainingLatents:
    """`Latents` that are all encoded before the training.

    targets: (n, 3 bands). references: (P,), with reference_masks (P,1,h,w) and the photo (P,) each was made from.
    classes: (m, 3 bands) and class_references (m,), an augmented copy of each; None without prior preservation.
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
        copies = [torch.nonzero(self.reference_photos == photo).flatten() for photo in photos]
        chosen = torch.cat([rows[torch.randint(len(rows), (1,), generator=generator)] for rows in copies])
        return self.references.sample((chosen,), generator), self.reference_masks[chosen]

    def class_image(self, images: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        return self.classes.sample((images, bands), generator)

    def class_reference(self, images: Tensor, generator: Generator) -> Tensor:
        return self.class_references.sample((images,), generator)


@dataclass
class Batch:
    """One step's draws, the subject's samples first, then as many class images: everything random is in here.

    photo (Bi,): its number; z0, noise (B,4,h,w); t (B,); mask (B,1,h,w): where noise and loss are; subject_mask
    (Bi,1,h,w); bands (B,): FULL for class images; caption (Bi,): which wording; z_r, noise_r (Br,4,h,w), t_r (Br,),
    mask_r (Br,1,h,w): those of a sample one after another.
    """

    photo: Tensor
    z0: Tensor
    noise: Tensor
    t: Tensor
    mask: Tensor
    subject_mask: Tensor
    bands: Tensor
    caption: Tensor
    z_r: Tensor
    noise_r: Tensor
    t_r: Tensor
    mask_r: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def band_filter(config: TrainConfig) -> Filter:
    return Filter(
        config.filter_shape, config.low_cutoff, config.high_cutoff, config.filter_colour, config.filter_rectify
    )


def _bands(images: Tensor, config: TrainConfig, encode: Encode, *, filtered: bool = True) -> Posterior:
    """Posteriors (N, 3, 4,h,w) of I_LF, I_HF, I_ori (Eq. 3-5); not `filtered`: I_ori three times over."""
    if not filtered:
        mean, std = encode(images)
        return Posterior(*(x[:, None].expand(-1, len(Band), -1, -1, -1) for x in (mean, std)))
    bands = [apply_band(images, torch.full((len(images),), band), band_filter(config)) for band in Band]
    pairs = [encode(x) for x in bands]
    return Posterior(torch.stack([m for m, _ in pairs], 1), torch.stack([s for _, s in pairs], 1))


def augmented(
    images: Tensor, masks: Tensor, rows: Iterable[int], config: TrainConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """A new augmentation of each of these rows of images (N,3,R,R) and masks (N,1,R,R)."""
    kind = config.reference_augmentation
    pairs = [augment_reference(images[i], masks[i], kind, generator=generator) for i in rows]
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


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


def prepare(
    subject: Subject, class_images: Tensor | None, config: TrainConfig, encode: Encode, generator: Generator
) -> TrainingLatents:
    """Encode photos in three bands, a pool of augmented references, class images (m,3,R,R) and a copy of each."""
    targets = _bands(subject.images, config, encode)
    size = targets.mean.shape[-2:]
    photos = torch.arange(max(config.reference_pool, len(subject.images))) % len(subject.images)
    pool, pool_masks = augmented(subject.images, subject.masks, photos.tolist(), config, generator)
    masks = subject_masks(subject, size, config)
    classes = class_references = None
    if class_images is not None:
        classes = _bands(class_images, config, encode, filtered=config.filter_prior)
        whole = torch.ones_like(class_images[:1, :1]).expand(len(class_images), -1, -1, -1)
        copies, _ = augmented(class_images, whole, range(len(class_images)), config, generator)
        class_references = Posterior(*encode(copies))
    return TrainingLatents(
        targets=targets,
        subject_masks=masks,
        noise_masks=grown_masks(masks, config),
        references=Posterior(*encode(pool)),
        reference_masks=latent_masks(pool_masks, size, config),
        reference_photos=photos,
        classes=classes,
        class_references=class_references,
    )


def _other_photos(photos: Tensor, count: int, wanted: int, generator: Generator) -> Tensor:
    """For each of photos (B,) `wanted` others of `count`, one after another, each as likely: (B wanted,). All different
    while there are so many; the same one if there is no other."""
    if count == 1:
        return photos.repeat_interleave(wanted)
    if wanted == 1:
        return (photos + torch.randint(1, count, photos.shape, generator=generator)) % count
    order = torch.rand(len(photos), count - 1, generator=generator).argsort(1) + 1
    steps = order[:, torch.arange(wanted) % (count - 1)]
    return ((photos[:, None] + steps) % count).flatten()


def draw_batch(latents: Latents, config: TrainConfig, timesteps: int, generator: Generator) -> Batch:
    """One step's Batch; `timesteps` is the length of the noise schedule. The generator decides everything.

    References come last: how much is drawn for one depends on the kind of `latents`, and nothing else shall.
    """
    n, count = config.train_batch_size, len(latents.subject_masks)
    photo = torch.randint(count, (n,), generator=generator)
    bands = draw_bands(config.band_probs if config.fdte else (0, 0, 1), n, generator)  # without FDTE: I_ori
    z0 = latents.target(photo, bands, generator)
    mask = latents.noise_masks[photo] if config.masking != "none" else torch.ones_like(latents.noise_masks[photo])
    image = torch.empty(0, dtype=torch.long)
    if latents.class_count:
        image = torch.randint(latents.class_count, (n,), generator=generator)
        band = draw_bands(config.band_probs, n, generator) if config.filter_prior else torch.full((n,), Band.FULL)
        z0 = torch.cat([z0, latents.class_image(image, band, generator)])
        mask, bands = torch.cat([mask, torch.ones_like(mask)]), torch.cat([bands, torch.full((n,), Band.FULL)])
    noise = torch.randn(z0.shape, generator=generator)
    t = torch.randint(timesteps, (len(z0),), generator=generator)
    each = config.num_references
    own = torch.randn((each * len(z0), *z0.shape[1:]), generator=generator)
    weights = torch.tensor([share for _, share in SIZE_PREFIXES])
    prefix = torch.multinomial(weights, n, replacement=True, generator=generator)
    if config.rra:
        z_r, mask_r = latents.reference(_other_photos(photo, count, each, generator), generator)
    else:
        z_r, mask_r = z0[:0], mask[:0]
    if config.rra and len(image) and config.reference_on_prior:
        z_r = torch.cat([z_r, latents.class_reference(image.repeat_interleave(each), generator)])
        mask_r = torch.cat([mask_r, torch.ones_like(mask_r)])
    return Batch(
        photo=photo,
        z0=z0,
        noise=noise,
        t=t,
        mask=mask,
        subject_mask=latents.subject_masks[photo],
        bands=bands,
        caption=prefix if config.size_prefixes else torch.zeros_like(prefix),
        z_r=z_r,
        noise_r=(own if config.reference_noise == "independent" else noise.repeat_interleave(each, 0))[: len(z_r)],
        t_r=(t.repeat_interleave(each)[: len(z_r)] - config.reference_time_gap).clamp(min=0),
        mask_r=mask_r,
    )
