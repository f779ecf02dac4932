"""Counting on the meta device: our own code under FlopCounterMode, at SD 1.4's sizes. For count.py."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from common import random_base
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from eqdiff.attention import ReferenceContext
from eqdiff.config import TrainConfig, preset_config
from eqdiff.data import Subject
from eqdiff.latents import Batch, draw_batch, prepare
from eqdiff.objective import Objective
from eqdiff.reference import capture
from eqdiff.setup import build_model

UNIT, TOLERANCE = 803e9, 1e9  # FLOP
META = SimpleNamespace(device=torch.device("meta"), mixed_precision="no")  # all that `build_model` asks accelerate for


class NoValues(TorchDispatchMode):
    """Tells whoever reads a value of a meta tensor 0, and counts: on a GPU each such read would wait for the device."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.reads += 1
            return 0
        return func(*args, **(kwargs or {}))


def flops(action: Callable[[], Any], *, grad: bool = False) -> int:
    with FlopCounterMode(display=False) as counter, NoValues(), nullcontext() if grad else torch.no_grad():
        action()
    return counter.get_total_flops()


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def unet_flops(unet: nn.Module, side: int) -> int:
    """A forward of one sample of side x side latents."""
    width = unet.config.cross_attention_dim
    return flops(lambda: unet(meta(1, 4, side, side), meta(1, dtype=torch.long), meta(1, 77, width)))


def check_unit(unet: nn.Module) -> int:
    """The unit [FLOP]. SystemExit: attention is not counted, or this is no Stable Diffusion 1.4."""
    q = meta(1, 8, 64, 40)
    if flops(lambda: F.scaled_dot_product_attention(q, q, q)) != 4 * 8 * 64 * 64 * 40:
        sys.exit("FlopCounterMode of this torch does not count attention on the meta device: no figure can be trusted")
    found = unet_flops(unet, 64)
    if abs(found - UNIT) > TOLERANCE:
        sys.exit(f"a plain UNet forward comes to {found / 1e9:.1f} GFLOP, not {UNIT / 1e9:.0f} +- 1: not SD 1.4")
    return found


def build(config: TrainConfig) -> Objective:
    with NoValues():
        return Objective(build_model(config, random_base("meta"), META), config)


def square_subject(photos: int, side: int) -> Subject:
    masks = torch.zeros(photos, 1, side, side)
    masks[..., side // 4 : -side // 4, side // 4 : -side // 4] = 1
    return Subject(torch.zeros(photos, 3, side, side), masks, tuple(f"{i}.png" for i in range(photos)), "mug")


def some_batch(config: TrainConfig) -> Batch:
    """A step's draws at `config.resolution`; the numbers in it mean nothing."""
    side, generator = config.resolution // 8, torch.Generator().manual_seed(0)
    subject = square_subject(2, config.resolution)

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(images), 4, side, side), torch.ones(len(images), 4, side, side)

    cheap = replace(config, reference_pool=2, reference_augmentation="none")
    latents = prepare(subject, subject.images, cheap, encode, generator)
    return draw_batch(latents, config, 1000, generator).to(META.device)


def training(objective: Objective, batch: Batch, *, parts: bool = True) -> dict[str, int]:
    """A step [FLOP] and its parts, each run by itself but for main, which is the rest of the forward."""
    model, n = objective.model, len(batch.caption)
    kept: list[Tensor] = []
    found = {"forward": flops(lambda: kept.append(objective(batch)["loss"]), grad=True)}
    found["backward"] = flops(lambda: kept[0].backward(), grad=True)
    found["step"] = found["forward"] + found["backward"]
    if not parts:
        return found
    captions = objective.ids[batch.caption], objective.slots[batch.caption], batch.bands[:n]
    found["text"] = flops(lambda: kept.append(model.encode(*captions)), grad=True)
    found["text backward"] = flops(lambda: kept[1].sum().backward(), grad=True)
    text = meta(len(batch.z0), *kept[1].shape[1:])
    found["plain"] = flops(lambda: model.predict(batch.z0, batch.t, text, ReferenceContext({})))
    found["reference"] = found["reference in full"] = 0
    if model.sites:
        seen = batch.z_r, batch.t_r, text[: len(batch.z_r)]
        found["reference"] = flops(lambda: capture(model.reference_unet, model.sites, *seen))
        found["reference in full"] = flops(lambda: model.reference_unet(*seen))
    found["main"] = found["forward"] - found["text"] - found["reference"]
    return found


def sampling(objective: Objective, side: int, *, halves: int = 2) -> dict[str, int]:
    """The parts of drawing an image [FLOP]; cache: bytes of a step's features in bf16. halves of guidance with RRA."""
    model, features = objective.model, {}
    z, t, text = meta(2, 4, side, side), meta(1, dtype=torch.long), meta(2, 77, 768)
    seen = (model.reference_unet, model.sites, z[:halves], t, text[:halves])
    parts = {"reference": flops(lambda: features.update(capture(*seen)))}
    context = ReferenceContext(features, samples=halves, first=2 - halves)
    parts["main"] = flops(lambda: model.predict(z, t, text, context))
    parts["plain"] = flops(lambda: model.predict(z, t, text, ReferenceContext({})))
    ids, slots = model.tokenize(["a {} on a beach"], "mug")
    parts["text"] = flops(lambda: model.encode(ids, slots, meta(1, dtype=torch.long)))
    parts["text"] += flops(lambda: model.encode_plain([""]))
    parts["decode"] = flops(lambda: model.vae.decode(z[:1]))
    return parts | {"cache": sum(2 * x.numel() for x in features.values())}


def per_image(parts: dict[str, int], images: int, steps: int) -> float:
    """FLOP an image of `images` of a subject: the reference pass is made once for all."""
    return steps * (parts["main"] + parts["reference"] / images) + parts["text"] + parts["decode"]


def encode_flops(objective: Objective, resolution: int) -> int:
    """The VAE's encoding of one picture."""
    return flops(lambda: objective.model.vae.encode(meta(1, 3, resolution, resolution)))


def encodings(photos: int) -> int:
    """Pictures that the VAE encodes before a training with the defaults, counted where `prepare` asks for them."""
    seen: list[int] = []

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        return torch.zeros(len(images), 4, 4, 4), torch.ones(len(images), 4, 4, 4)

    config = preset_config("paper", class_word="mug", resolution=32, reference_augmentation="none")
    classes = torch.zeros(config.num_class_images, 3, 32, 32)
    prepare(square_subject(photos, 32), classes, config, encode, torch.Generator().manual_seed(0))
    return sum(seen)
