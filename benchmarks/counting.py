"""Counting on the meta device: our own code under FlopCounterMode, at SD 1.4's sizes."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import random_base
from eqdiff.batch import Batch, draw_batch
from eqdiff.context import ReferenceContext
from eqdiff.data.latents import prepare
from eqdiff.data.subject import Subject
from eqdiff.objective import Objective
from eqdiff.reference import capture
from eqdiff.settings.presets import preset_config
from eqdiff.settings.train import TrainConfig
from eqdiff.training.build import build_model

UNIT = 803e9  # FLOP of a plain UNet forward at SD 1.4's sizes
TOLERANCE = 1e9  # FLOP
TRAIN_TIMESTEPS = 1000
# all that `build_model` reads of an accelerator
META = SimpleNamespace(device=torch.device("meta"), mixed_precision="no")


class NoValues(TorchDispatchMode):
    """Answers 0 to whoever reads a value of a meta tensor, and counts such reads.

    On a GPU each of them would wait for the device.
    """

    reads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.reads += 1
            return 0
        return func(*args, **(kwargs or {}))


def flops(action: Callable[[], Any], *, grad: bool = False) -> int:
    """FLOP of an action; a fused multiply-add is 2."""
    gradient = nullcontext() if grad else torch.no_grad()
    with FlopCounterMode(display=False) as counter, NoValues(), gradient:
        action()
    return counter.get_total_flops()


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def unet_flops(unet: nn.Module, side: int) -> int:
    """A forward of one sample of side x side latents."""
    text = meta(1, 77, unet.config.cross_attention_dim)
    return flops(lambda: unet(meta(1, 4, side, side), meta(1, dtype=torch.long), text))


def check_unit(unet: nn.Module) -> int:
    """The unit [FLOP].

    Raises SystemExit if attention is not counted, or if this is no Stable Diffusion 1.4.
    """
    q = meta(1, 8, 64, 40)
    if flops(lambda: F.scaled_dot_product_attention(q, q, q)) != 4 * 8 * 64 * 64 * 40:
        sys.exit(
            "FlopCounterMode of this torch does not count attention on the meta device: "
            "no figure can be trusted"
        )

    unit = unet_flops(unet, 64)
    if abs(unit - UNIT) > TOLERANCE:
        expected = f"{UNIT / 1e9:.0f} +- 1"
        sys.exit(f"a plain UNet forward has {unit / 1e9:.1f} GFLOP, not {expected}: not SD 1.4")
    return unit


def build(config: TrainConfig) -> Objective:
    """The objective of a training at SD 1.4's sizes, shapes alone."""
    with NoValues():
        return Objective(build_model(config, random_base("meta"), META), config)


def square_subject(photos: int, side: int) -> Subject:
    """Grey photos whose middle half is the subject."""
    masks = torch.zeros(photos, 1, side, side)
    masks[..., side // 4 : -side // 4, side // 4 : -side // 4] = 1
    names = tuple(f"{number}.png" for number in range(photos))
    return Subject(torch.zeros(photos, 3, side, side), masks, names, "mug")


def some_batch(config: TrainConfig) -> Batch:
    """A step's draws at `config.resolution`; the numbers in it mean nothing."""
    side = config.resolution // 8
    generator = torch.Generator().manual_seed(0)
    subject = square_subject(2, config.resolution)

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        shape = (len(images), 4, side, side)
        return torch.zeros(shape), torch.ones(shape)

    cheap = replace(config, reference_pool=2, reference_augmentation="none")
    latents = prepare(subject, subject.images, cheap, encode, generator)
    return draw_batch(latents, config, TRAIN_TIMESTEPS, generator).to(META.device)


def training(objective: Objective, batch: Batch, *, parts: bool = True) -> dict[str, int]:
    """FLOP of a step and of its parts.

    Each part is run by itself, but for main, which is the rest of the forward.
    """
    model = objective.model
    kept: list[Tensor] = []
    work = {"forward": flops(lambda: kept.append(objective(batch)["loss"]), grad=True)}
    work["backward"] = flops(lambda: kept[0].backward(), grad=True)
    work["step"] = work["forward"] + work["backward"]
    if not parts:
        return work

    bands = batch.bands[: len(batch.caption)]
    captions = (objective.ids[batch.caption], objective.slots[batch.caption], bands)
    work["text"] = flops(lambda: kept.append(model.encode(*captions)), grad=True)
    work["text backward"] = flops(lambda: kept[1].sum().backward(), grad=True)

    text = meta(len(batch.z0), *kept[1].shape[1:])
    plain = ReferenceContext({})
    work["plain"] = flops(lambda: model.predict(batch.z0, batch.t, text, plain))

    work["reference"] = work["reference in full"] = 0
    if model.sites:
        inputs = (batch.z_r, batch.t_r, text[: len(batch.z_r)])
        work["reference"] = flops(lambda: capture(model.reference_unet, model.sites, *inputs))
        work["reference in full"] = flops(lambda: model.reference_unet(*inputs))

    work["main"] = work["forward"] - work["text"] - work["reference"]
    return work


def sampling(objective: Objective, side: int, *, halves: int = 2) -> dict[str, int]:
    """FLOP of the parts of drawing an image; cache: bytes of a step's features in bf16.

    halves: those of guidance that have RRA.
    """
    model = objective.model
    z = meta(2, 4, side, side)
    t = meta(1, dtype=torch.long)
    text = meta(2, 77, 768)

    features: dict[str, Tensor] = {}
    inputs = (model.reference_unet, model.sites, z[:halves], t, text[:halves])
    parts = {"reference": flops(lambda: features.update(capture(*inputs)))}
    context = ReferenceContext(features, samples=halves, first=2 - halves)
    parts["main"] = flops(lambda: model.predict(z, t, text, context))
    parts["plain"] = flops(lambda: model.predict(z, t, text, ReferenceContext({})))

    ids, slots = model.tokenize(["a {} on a beach"], "mug")
    parts["text"] = flops(lambda: model.encode(ids, slots, meta(1, dtype=torch.long)))
    parts["text"] += flops(lambda: model.encode_plain([""]))
    parts["decode"] = flops(lambda: model.vae.decode(z[:1]))
    parts["cache"] = sum(2 * x.numel() for x in features.values())
    return parts


def per_image(parts: dict[str, int], images: int, steps: int) -> float:
    """FLOP an image of `images` of a subject: the reference pass is made once for all."""
    step = parts["main"] + parts["reference"] / images
    return steps * step + parts["text"] + parts["decode"]


def encode_flops(objective: Objective, resolution: int) -> int:
    """FLOP of the VAE's encoding of one picture."""
    return flops(lambda: objective.model.vae.encode(meta(1, 3, resolution, resolution)))


def encodings(photos: int) -> int:
    """Pictures that the VAE encodes before a training with the defaults."""
    counts: list[int] = []

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        counts.append(len(images))
        return torch.zeros(len(images), 4, 4, 4), torch.ones(len(images), 4, 4, 4)

    config = preset_config("paper", class_word="mug", resolution=32, reference_augmentation="none")
    classes = torch.zeros(config.num_class_images, 3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    prepare(square_subject(photos, 32), classes, config, encode, generator)
    return sum(counts)
