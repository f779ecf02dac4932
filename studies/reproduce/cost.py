"""What cells cost: counted in forwards of the base's UNet, and seconds by timing one.

u is one forward of the UNet on one sample. The counts are those of `python -m benchmarks.count` at
Stable Diffusion's sizes (docs/speed.md). Encoding and decoding are timed apart: beside the UNet of
a small base they weigh more.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from eqdiff.base.load import Base
from eqdiff.evaluation.divergence import DRAWS
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.train import TrainConfig

TERA = 1e12
SD_UNIT = 0.803  # TFLOP of u at Stable Diffusion 1.4's sizes
H100 = 100.0  # TFLOP a second that a UNet of this kind sustains on one H100: assumed, not measured

# u of a sample in a training step: the forward, the backward by what is trained, what RRA adds
BACKWARD = {"none": 1.09, "kv": 1.09, "all": 2.05}
REFERENCE = 0.953  # the reference UNet's forward, to the last layer that RRA reads
RRA_FORWARD = 0.13
RRA_BACKWARD = 0.241
MATCHING = 0.069  # of DreamMatcher's pictures, in plain ones
INVERSION = 2.88  # u of its inversion and reference a step, once a subject
ATTENDED = 0.069  # what seeing one photo adds to FreeCustom's pictures, in plain pictures
DRIFT_PROMPTS = 9  # three rings of three: `eqdiff/evaluation/divergence.py`
SAMPLES = 4  # at once, when the unit is timed


@dataclass(frozen=True)
class Speeds:
    """Seconds on this machine: a UNet forward of a sample, the VAE's two ways, a cell's start."""

    unit: float
    encode: float
    decode: float
    start: float


def step_units(config: TrainConfig) -> float:
    """u of a training step."""
    photos = config.train_batch_size * config.gradient_accumulation_steps
    samples = photos * (2 if config.with_prior_preservation else 1)
    forward = 2.0 if config.gradient_checkpointing else 1.0
    units = samples * (forward + BACKWARD[config.unet_weights])
    if config.with_prior_preservation and not config.needs_class_images:
        units += photos  # the frozen UNet's own prediction
    if config.rra:
        attending = photos
        if config.reference_on_prior and config.needs_class_images:
            attending = samples
        units += attending * (REFERENCE + RRA_FORWARD + RRA_BACKWARD)
    return units


def image_units(config: TrainConfig, sample: SampleConfig, images: int) -> float:
    """u of drawing one of so many pictures, without the decoding."""
    steps = sample.steps(config)
    units = 2.0 * steps
    if config.rra and sample.rra:
        units += steps * (2.0 * RRA_FORWARD + 2 * REFERENCE / images)
    if sample.dci:
        units += steps * sample.dci_share  # the other picture's conditional forward
    if sample.dreammatcher:
        units += MATCHING * 2.0 * steps + INVERSION * steps / images
    if sample.freecustom:
        photos = sample.num_references or config.num_references
        units += photos * steps * (2.0 * ATTENDED + REFERENCE / images)
    return units


def encodings(config: TrainConfig, photos: int) -> int:
    """Pictures that the VAE encodes before a training: photos in three bands, classes, a pool."""
    classes = 2 * config.num_class_images if config.needs_class_images else 0
    return 3 * photos + classes + (config.reference_pool if config.rra else 0)


def class_units(config: TrainConfig) -> float:
    """u of the class images, which a machine draws once for each class word."""
    if not config.needs_class_images:
        return 0.0
    return config.num_class_images * 2.0 * config.class_inference_steps


def cell_units(config: TrainConfig, sample: SampleConfig, images: int) -> float:
    """u of a cell without its encodings, decodings and class images."""
    drawing = images * image_units(config, sample, images)
    return config.max_train_steps * step_units(config) + drawing + drift_units(config)


def drift_units(config: TrainConfig) -> float:
    """u of the drift: a picture of the base a prompt, then forwards of base and concept."""
    concept = 1 + (REFERENCE + RRA_FORWARD if config.rra else 0.0)
    return DRIFT_PROMPTS * (2.0 * config.num_inference_steps + DRAWS * (1 + concept))


def cell_seconds(
    config: TrainConfig, sample: SampleConfig, images: int, photos: int, speeds: Speeds
) -> float:
    """Seconds of a cell, its class images apart."""
    work = cell_units(config, sample, images) * speeds.unit
    work += encodings(config, photos) * speeds.encode + images * speeds.decode
    return speeds.start + work


def class_seconds(config: TrainConfig, speeds: Speeds) -> float:
    """Seconds of a class word's pictures."""
    pictures = config.num_class_images if config.needs_class_images else 0
    return class_units(config) * speeds.unit + pictures * speeds.decode


@torch.no_grad()
def timed(base: Base, device: str, threads: int, start: float) -> Speeds:
    """The speeds of a base here, in the precision that a training takes.

    start: seconds that a process needs before its first step.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    # torch's own `to`: diffusers' warns of any precision that is asked for
    unet = torch.nn.Module.to(base.unet, device, dtype)
    vae = torch.nn.Module.to(base.vae, device, dtype)

    side = unet.config.sample_size
    pixels = side * 2 ** (len(vae.config.block_out_channels) - 1)
    width = unet.config.cross_attention_dim
    latents = torch.randn(SAMPLES, 4, side, side, device=device, dtype=dtype)
    text = torch.randn(SAMPLES, 77, width, device=device, dtype=dtype)
    t = torch.full((SAMPLES,), 500, device=device)
    picture = torch.rand(1, 3, pixels, pixels, device=device, dtype=dtype)
    try:
        return Speeds(
            unit=_seconds(lambda: unet(latents, t, text), device) / SAMPLES,
            encode=_seconds(lambda: vae.encode(picture), device),
            decode=_seconds(lambda: vae.decode(latents[:1]), device),
            start=start,
        )
    finally:
        torch.set_num_threads(before)


def _seconds(action: Callable[[], object], device: str, rounds: int = 3) -> float:
    """The median time of an action, after one that warms up."""
    times = []
    for _ in range(1 + rounds):
        begun = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return sorted(times[1:])[rounds // 2]
