"""The training data as latents: everything the VAE has to do is done once, then a step is UNet work only.

Axes: n photos, m class images, P augmented references, B batch, h,w latent size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from eqdiff.config import TrainConfig
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


@dataclass(frozen=True)
class TrainingLatents:
    """What the training draws from.

    targets: (n, 3 bands); subject_masks, noise_masks (n,1,h,w): as it is, and dilated for Eq. 6-7.
    references: (P,), with reference_masks (P,1,h,w) and the photo (P,) each was made from.
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


@dataclass
class Batch:
    """One step's draws, the subject's samples first, then as many class images: everything random is in here.

    z0, noise (B,4,h,w); t (B,); mask (B,1,h,w): where noise and loss are; subject_mask (Bi,1,h,w); bands (B,): FULL
    for class images; caption (Bi,): which wording; z_r, noise_r (Br,4,h,w), t_r (Br,), mask_r (Br,1,h,w).
    """

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


@torch.no_grad()
def vae_encoder(vae: torch.nn.Module, batch: int = 4) -> Encode:
    """The VAE as a function of pictures (N,3,H,W) -> scaled posterior mean and std (N,4,h,w), fp32 on the CPU."""

    @torch.no_grad()
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        parts = [vae.encode(x.to(vae.device, vae.dtype)).latent_dist for x in images.split(batch)]
        scale = vae.config.scaling_factor
        return tuple(scale * torch.cat([getattr(p, name).float().cpu() for p in parts]) for name in ("mean", "std"))

    return encode


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


def prepare(
    subject: Subject, class_images: Tensor | None, config: TrainConfig, encode: Encode, generator: Generator
) -> TrainingLatents:
    """Encode photos in three bands, a pool of augmented references, class images (m,3,R,R) and a copy of each."""
    targets = _bands(subject.images, config, encode)
    size = targets.mean.shape[-2:]
    photos = torch.arange(max(config.reference_pool, len(subject.images))) % len(subject.images)
    kind = config.reference_augmentation
    pool = [augment_reference(subject.images[i], subject.masks[i], kind, generator=generator) for i in photos]
    method = "area" if config.binary_masks else "nearest"  # grey masks stay grey, as in the release
    masks = to_latent_mask(subject.masks, size, method=method)
    classes = class_references = None
    if class_images is not None:
        classes = _bands(class_images, config, encode, filtered=config.filter_prior)
        whole = torch.ones_like(class_images[0, :1])
        copies = [augment_reference(x, whole, kind, generator=generator)[0] for x in class_images]
        class_references = Posterior(*encode(torch.stack(copies)))
    return TrainingLatents(
        targets=targets,
        subject_masks=masks,
        noise_masks=dilate(masks, dilation_radius(config.mask_dilation, size[-1])),
        references=Posterior(*encode(torch.stack([image for image, _ in pool]))),
        reference_masks=to_latent_mask(torch.stack([mask for _, mask in pool]), size, method=method),
        reference_photos=photos,
        classes=classes,
        class_references=class_references,
    )


def _other_photo(latents: TrainingLatents, target: int, generator: Generator) -> int:
    """A reference of another photo than the target's, uniform over the pool; of the same one if there is no other."""
    others = torch.nonzero(latents.reference_photos != target).flatten()
    others = others if len(others) else torch.arange(len(latents.reference_photos))
    return int(others[torch.randint(len(others), (1,), generator=generator)])


def draw_batch(latents: TrainingLatents, config: TrainConfig, timesteps: int, generator: Generator) -> Batch:
    """One step's Batch; `timesteps` is the length of the noise schedule. The generator decides everything."""
    n = config.train_batch_size
    photo = torch.randint(len(latents.subject_masks), (n,), generator=generator)
    bands = draw_bands(config.band_probs if config.fdte else (0, 0, 1), n, generator)  # without FDTE: I_ori
    z0 = latents.targets.sample((photo, bands), generator)
    chosen = torch.tensor([_other_photo(latents, int(i), generator) for i in photo])
    z_r, mask_r = latents.references.sample((chosen,), generator), latents.reference_masks[chosen]
    mask = latents.noise_masks[photo] if config.masking != "none" else torch.ones_like(latents.noise_masks[photo])
    if latents.classes is not None and latents.class_references is not None:
        image = torch.randint(len(latents.classes.mean), (n,), generator=generator)
        band = draw_bands(config.band_probs, n, generator) if config.filter_prior else torch.full((n,), Band.FULL)
        z0 = torch.cat([z0, latents.classes.sample((image, band), generator)])
        mask, bands = torch.cat([mask, torch.ones_like(mask)]), torch.cat([bands, torch.full((n,), Band.FULL)])
        if config.reference_on_prior:
            z_r = torch.cat([z_r, latents.class_references.sample((image,), generator)])
            mask_r = torch.cat([mask_r, torch.ones_like(mask_r)])
    noise = torch.randn(z0.shape, generator=generator)
    t = torch.randint(timesteps, (len(z0),), generator=generator)
    own = torch.randn(z_r.shape, generator=generator)
    weights = torch.tensor([share for _, share in SIZE_PREFIXES])
    prefix = torch.multinomial(weights, n, replacement=True, generator=generator)
    return Batch(
        z0=z0,
        noise=noise,
        t=t,
        mask=mask,
        subject_mask=latents.subject_masks[photo],
        bands=bands,
        caption=prefix if config.size_prefixes else torch.zeros_like(prefix),
        z_r=z_r,
        noise_r=own if config.reference_noise == "independent" else noise[: len(z_r)],
        t_r=(t[: len(z_r)] - config.reference_time_gap).clamp(min=0),
        mask_r=mask_r,
    )
