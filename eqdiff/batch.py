"""Everything random in a training step: photo, band, timestep, noise, reference (Sec. 3 and 4).

The algorithm draws a photo of the subject and its band (I_g, Eq. 5), its latent z0 from the
encoder's posterior, t and eps (Eq. 1), another photo (I_r) and its own noise (Sec. 4.3).
objective.py takes it from there and draws nothing.

Departures from the paper, each a setting that is off by default: class images draw bands too,
captions get the release's size prefixes, the reference shares the target's noise or is some
timesteps earlier, and timesteps prefer the noisy end. Ours, off by default too: some samples have
noise outside the mask, and the photos stand in for class images.

Axes: n photos, m class images, B batch, Bi subject's samples in it, Br references, h, w latents.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from eqdiff.frequency import ALWAYS_FULL, Band, draw_bands
from eqdiff.masking import dilate_by_time, loss_weights, noise_region
from eqdiff.settings.groups import Draws

# The release's false size prefixes and their probabilities; the photo is never resized to fit them.
SIZE_PREFIXES = (
    ("", 0.394),
    ("a far away ", 0.133),
    ("very small ", 0.133),
    ("zoomed in ", 0.17),
    ("close up ", 0.17),
)


class Latents(Protocol):
    """Where latents come from: `TrainingLatents` are encoded once, `LiveLatents` at every step.

    Both draw from the same distribution. Photos and class images are given by their numbers (B,),
    and the generator decides everything.
    """

    subject_masks: Tensor  # (n,1,h,w), as they are
    noise_masks: Tensor  # (n,1,h,w), dilated for Eq. 6-7

    @property
    def photo_means(self) -> Tensor:
        """Posterior means of the whole photos: (n,4,h,w)."""

    @property
    def class_count(self) -> int:
        """m; 0 without prior preservation: the other two `class_` methods are then not for use."""

    def target(self, photos: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        """z0 of photos in these bands: (B,4,h,w)."""

    def reference(self, photos: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """z^r of augmented copies of photos (B,4,h,w), and the subject's masks there (B,1,h,w)."""

    def class_image(self, images: Tensor, bands: Tensor, generator: Generator) -> Tensor:
        """z0 of class images in these bands: (B,4,h,w)."""

    def class_reference(self, images: Tensor, generator: Generator) -> Tensor:
        """z^r of augmented copies of class images: (B,4,h,w)."""


@dataclass
class Batch:
    """One step's draws, the subject's samples first, then as many class images.

    With `prior_kind` prediction photos of the subject stand in for the class images.
    """

    photo: Tensor  # (Bi,) number of the photo
    class_image: Tensor  # (B - Bi,) number of the class image, or of the photo in its place
    z0: Tensor  # (B,4,h,w)
    noise: Tensor  # (B,4,h,w)
    t: Tensor  # (B,)
    mask: Tensor  # (B,1,h,w) what each cell counts in the loss; ones for class images
    noised: Tensor  # (B,1,h,w) where noise is, the mask or more; ones for class images
    subject_mask: Tensor  # (Bi,1,h,w) where the subject is, never dilated
    bands: Tensor  # (B,) of Band; FULL for class images, whose caption has no subject
    caption: Tensor  # (Bi,) number of the wording
    # references: those of a sample one after another
    z_r: Tensor  # (Br,4,h,w)
    noise_r: Tensor  # (Br,4,h,w)
    t_r: Tensor  # (Br,)
    mask_r: Tensor  # (Br,1,h,w) where the subject is

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items()}
        return Batch(**moved)


def draw_batch(latents: Latents, config: Draws, timesteps: int, generator: Generator) -> Batch:
    """One step's Batch; `timesteps` is the length of the noise schedule.

    The generator decides everything.
    """
    # The order of the random draws is a contract: with another one no training can be repeated bit
    # for bit. References come last, for how much they draw depends on the kind of `latents`.
    subject = _draw_subject(latents, config, generator)
    prior = _draw_prior(latents, config, generator)
    samples = [subject] if prior is None else [subject, prior]
    z0 = torch.cat([part.z0 for part in samples])

    noise = torch.randn(z0.shape, generator=generator)
    t = draw_timesteps(len(z0), timesteps, config.high_noise_share, generator)
    noise_r = _draw_reference_noise(config, noise, generator)
    caption = _draw_captions(config, len(subject.z0), generator)
    time = t[: len(subject.z0)] / timesteps
    mask, noised = _draw_masks(latents, config, subject, time, generator)
    whole = mask[:0] if prior is None else torch.ones_like(mask)

    z_r, mask_r = _draw_reference(latents, config, subject, prior, generator)
    t_r = t.repeat_interleave(config.num_references) - config.reference_time_gap

    return Batch(
        photo=subject.number,
        class_image=subject.number[:0] if prior is None else prior.number,
        z0=z0,
        noise=noise,
        t=t,
        mask=torch.cat([mask, whole]),
        noised=torch.cat([noised, whole]),
        subject_mask=latents.subject_masks[subject.number],
        bands=torch.cat([part.bands for part in samples]),
        caption=caption,
        z_r=z_r,
        noise_r=noise_r[: len(z_r)],
        t_r=t_r[: len(z_r)].clamp(min=0),
        mask_r=mask_r,
    )


class _Samples(NamedTuple):
    """The subject's share of a batch, or the class images'."""

    number: Tensor  # (B,) of the photo or the class image
    z0: Tensor  # (B,4,h,w)
    bands: Tensor  # (B,), what the caption says


# Eq. 5: I_g and its band, then z0 = E(I_g).
def _draw_subject(latents: Latents, config: Draws, generator: Generator) -> _Samples:
    """Photos in the bands of FDTE; without FDTE, all I_ori."""
    n = config.train_batch_size
    photo = torch.randint(len(latents.subject_masks), (n,), generator=generator)
    bands = draw_bands(config.band_probs if config.fdte else ALWAYS_FULL, n, generator)
    return _Samples(photo, latents.target(photo, bands, generator), bands)


def _draw_prior(latents: Latents, config: Draws, generator: Generator) -> _Samples | None:
    """As many class images as there are photos; None without prior preservation."""
    n = config.train_batch_size
    full = torch.full((n,), Band.FULL)
    if config.prior_kind == "prediction":
        photo = torch.randint(len(latents.subject_masks), (n,), generator=generator)
        return _Samples(photo, latents.target(photo, full, generator), full)
    if not latents.class_count:
        return None

    image = torch.randint(latents.class_count, (n,), generator=generator)
    shown = draw_bands(config.band_probs, n, generator) if config.filter_prior else full
    z0 = latents.class_image(image, shown, generator)
    return _Samples(image, z0, full)


def draw_timesteps(count: int, timesteps: int, high_share: float, generator: Generator) -> Tensor:
    """t of a schedule of `timesteps`, int64 (count,): uniform, as in the paper.

    high_share: a share of them, in [0, 1], comes from the noisiest quarter, which decides colours.
    """
    t = torch.randint(timesteps, (count,), generator=generator)
    if high_share == 0:
        return t

    first = 3 * timesteps // 4
    high = torch.rand(count, generator=generator) < high_share
    return torch.where(high, first + t * (timesteps - first) // timesteps, t)


# Eq. 6-7: M, which the paper has for both.
def _draw_masks(
    latents: Latents, config: Draws, subject: _Samples, time: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """What each cell of the photos counts in the loss, and where they get noise: (Bi,1,h,w) each.

    time: (Bi,), t as a share of the noise schedule, in [0, 1).
    """
    mask = latents.noise_masks[subject.number]
    if config.mask_dilation_by_t:
        own = latents.subject_masks[subject.number]
        mask = dilate_by_time(own, config.mask_dilation, time)
    if config.masking == "none":
        mask = torch.ones_like(mask)

    noised = noise_region(mask, _draw_full_noise(config, time, generator))
    return loss_weights(mask, noised, config.background_loss_weight), noised


def _draw_full_noise(config: Draws, time: Tensor, generator: Generator) -> Tensor:
    """Which samples get noise everywhere: (Bi,) bool. time: as of `_draw_masks`."""
    if config.masking != "noise":
        return torch.ones_like(time, dtype=torch.bool)

    full = time >= config.masked_noise_below
    if config.full_noise_share == 0:
        return full  # nothing is drawn, so that the draws behind it are the paper's
    return full | (torch.rand(len(time), generator=generator) < config.full_noise_share)


def _draw_reference_noise(config: Draws, noise: Tensor, generator: Generator) -> Tensor:
    """eps_r, or the target's noise, for all references there may be: (B num_references,4,h,w)."""
    each = config.num_references
    own = torch.randn((each * len(noise), *noise.shape[1:]), generator=generator)
    return own if config.reference_noise == "independent" else noise.repeat_interleave(each, 0)


def _draw_captions(config: Draws, n: int, generator: Generator) -> Tensor:
    """The number of each caption's wording, (n,): 0 for all without the release's prefixes."""
    weights = torch.tensor([share for _, share in SIZE_PREFIXES])
    prefix = torch.multinomial(weights, n, replacement=True, generator=generator)
    return prefix if config.size_prefixes else torch.zeros_like(prefix)


def _draw_reference(
    latents: Latents,
    config: Draws,
    subject: _Samples,
    prior: _Samples | None,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """z^r_0 (Br,4,h,w) and M^r (Br,1,h,w): of other photos, and of copies of the class images."""
    if not config.rra:
        return subject.z0[:0], latents.subject_masks[:0]
    each = config.num_references
    photos = _other_photos(subject.number, len(latents.subject_masks), each, generator)
    z_r, mask_r = latents.reference(photos, generator)

    # a frozen UNet, which has no reference, is matched without one: it would teach the gate to shut
    has_images = prior is not None and config.prior_kind == "images"
    if has_images and config.reference_on_prior:
        images = prior.number.repeat_interleave(each)
        z_r = torch.cat([z_r, latents.class_reference(images, generator)])
        mask_r = torch.cat([mask_r, torch.ones_like(mask_r)])
    return z_r, mask_r


def _other_photos(photos: Tensor, count: int, each: int, generator: Generator) -> Tensor:
    """For each of photos (B,) `each` others of `count`, one after another: (B each,).

    All others are equally likely. They differ from each other while there are so many. If there is
    no other photo, it is the same one.
    """
    if count == 1:
        return photos.repeat_interleave(each)
    if each == 1:
        return (photos + torch.randint(1, count, photos.shape, generator=generator)) % count

    order = torch.rand(len(photos), count - 1, generator=generator).argsort(1) + 1  # (B, count - 1)
    steps = order[:, torch.arange(each) % (count - 1)]  # (B, each)
    return ((photos[:, None] + steps) % count).flatten()
