"""Stable Diffusion 1.4's true sizes with random weights: counts, a training and a sampling step.

    python -m benchmarks.sd14 [--resolution 256] [--counts_only]

Runs on the CPU and needs about 12 GB of memory. Times are of this machine. The weights are noise,
so no picture is looked at.
"""

import argparse
import dataclasses
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import random_base
from benchmarks.counting import TRAIN_TIMESTEPS, square_subject
from eqdiff.attention import rra_processors
from eqdiff.batch import draw_batch
from eqdiff.concept.concept import References, capture_concept
from eqdiff.concept.file import save_concept
from eqdiff.data.latents import prepare
from eqdiff.data.vae import vae_encoder
from eqdiff.model import EqDiff, new_model
from eqdiff.objective import Objective
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.settings.presets import preset_config
from eqdiff.training.build import make_optimizer

CROSS_WEIGHTS = (".attn2.to_k.", ".attn2.to_v.")


def count(model: EqDiff) -> None:
    """Prints how many numbers a concept has, by what they are."""
    sizes = {name: p.numel() for name, p in model.concept_parameters().items()}
    total = sum(sizes.values())
    rra = sum(size for name, size in sizes.items() if ".processor." in name)
    rows = sum(size for name, size in sizes.items() if name.startswith("tokens."))

    parts = f"K/V {(total - rra - rows) / 1e6:.2f} M, RRA {rra / 1e6:.2f} M, token rows {rows}"
    print(f"{len(model.sites)} RRA sites; {parts}")
    print(f"concept {total / 1e6:.2f} M parameters: {total * 2 / 1e6:.1f} MB in bf16")


def count_on_meta() -> None:
    """Prints the numbers of K/V and RRA; nothing runs."""
    unet = random_base("meta").unet
    kv = sum(
        p.numel()
        for name, p in unet.named_parameters()
        if any(part in name for part in CROSS_WEIGHTS)
    )
    processors = rra_processors(unet, gate_init="zero", clamp="inward")
    rra = sum(p.numel() for processor in processors.values() for p in processor.parameters())
    print(f"{len(processors)} RRA sites; K/V {kv / 1e6:.2f} M, RRA {rra / 1e6:.2f} M")


def say_time(what: str, started: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.monotonic() - started
    print(f"{what}: {seconds:.1f} s (peak memory so far {peak:.1f} GB)", flush=True)


def run(resolution: int) -> None:
    """Encodes, makes a training step, saves the concept and makes a sampling step."""
    started = time.monotonic()
    base = random_base()
    config = preset_config(
        "paper", class_word="mug", resolution=resolution, reference_pool=2, train_batch_size=1
    )
    model = new_model(config, base)
    say_time("random weights and the reference's copy", started)
    count(model)

    started = time.monotonic()
    generator = torch.Generator().manual_seed(0)
    subject = square_subject(2, resolution)
    subject = dataclasses.replace(subject, images=torch.rand_like(subject.images) * 2 - 1)
    encode = vae_encoder(base.vae, batch=1)
    latents = prepare(subject, subject.images, config, encode, generator)
    say_time("encoding 2 photos in 3 bands, 2 references, 2 class images and copies", started)

    objective = Objective(model, config)
    optimizer = make_optimizer(model, config)
    started = time.monotonic()
    losses = objective(draw_batch(latents, config, TRAIN_TIMESTEPS, generator))
    losses["loss"].backward()
    optimizer.step()
    say_time(f"training step, batch 1 + 1, loss {float(losses['loss'].detach()):.3f}", started)

    means = latents.targets.mean
    noise = torch.randn(1, 4, *means.shape[-2:], generator=generator)
    references = References(means[:, -1], latents.subject_masks, noise, subject.names)
    concept = capture_concept(model, references, dataclasses.asdict(config), 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "concept.safetensors"
        save_concept(concept, file, dtype="bf16")
        print(f"concept file in bf16: {file.stat().st_size / 1e6:.1f} MB")

    pipe = EqDiffPipeline.of(base)
    pipe.attach(model, concept)
    started = time.monotonic()
    pipe("a photo of a {}", seeds=[0], num_inference_steps=1)
    say_time("sampling, 1 step of a guided image with its reference, and the VAE", started)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=256, help="side of pictures [pixels]")
    parser.add_argument("--counts_only", action="store_true", help="on the meta device")
    args = parser.parse_args(argv)

    if args.counts_only:
        count_on_meta()
    else:
        run(args.resolution)


if __name__ == "__main__":
    main()
