"""Stable Diffusion 1.4's true sizes with random weights: counts, one training step and one sampling step on the CPU.

    python benchmarks/sd14.py [--resolution 256] [--counts_only]

Needs about 12 GB of memory. Times are of this machine; the weights are noise, so no picture is looked at.
"""

import argparse
import dataclasses
import resource
import tempfile
import time
from pathlib import Path

import torch
from common import random_base

from eqdiff.concept import References, capture_concept, save_concept
from eqdiff.config import preset_config
from eqdiff.data import Subject
from eqdiff.encoding import vae_encoder
from eqdiff.latents import draw_batch, prepare
from eqdiff.model import EqDiff, start_rows
from eqdiff.objective import Objective
from eqdiff.pipeline import EqDiffPipeline
from eqdiff.setup import make_optimizer


def count(model: EqDiff) -> None:
    sizes = {name: p.numel() for name, p in model.concept_parameters().items()}
    rra = sum(size for name, size in sizes.items() if ".processor." in name)
    rows = sum(size for name, size in sizes.items() if name.startswith("tokens."))
    kv = sum(sizes.values()) - rra - rows
    print(f"{len(model.sites)} RRA sites; K/V {kv / 1e6:.2f} M, RRA {rra / 1e6:.2f} M, token rows {rows}")
    print(f"concept {sum(sizes.values()) / 1e6:.2f} M parameters: {sum(sizes.values()) * 2 / 1e6:.1f} MB in bf16")


def timed(what: str, started: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.monotonic() - started:.1f} s (peak memory so far {peak:.1f} GB)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=256, help="side of the pictures [pixels]")
    parser.add_argument("--counts_only", action="store_true", help="on the meta device: nothing runs")
    args = parser.parse_args()
    if args.counts_only:
        unet = random_base("meta").unet
        from eqdiff.attention import install, rra_sites

        kv = sum(p.numel() for n, p in unet.named_parameters() if ".attn2.to_k." in n or ".attn2.to_v." in n)
        processors = install(unet, gate_init="zero", clamp="inward").processors.values()
        rra = sum(p.numel() for processor in processors for p in processor.parameters())
        print(f"{len(rra_sites(unet))} RRA sites; K/V {kv / 1e6:.2f} M, RRA {rra / 1e6:.2f} M")
        return
    started = time.monotonic()
    base = random_base()
    config = preset_config("paper", class_word="mug", resolution=args.resolution, reference_pool=2, train_batch_size=1)
    model = EqDiff(base, start_rows(base, word="mug", n_rows=2, scale=1.0))
    timed("random weights and the reference's copy", started)
    count(model)
    images = torch.rand(2, 3, args.resolution, args.resolution) * 2 - 1
    masks = torch.zeros(2, 1, args.resolution, args.resolution)
    masks[..., args.resolution // 4 : -args.resolution // 4, args.resolution // 4 : -args.resolution // 4] = 1
    started, generator = time.monotonic(), torch.Generator().manual_seed(0)
    subject = Subject(images, masks, ("a.png", "b.png"), "mug")
    latents = prepare(subject, images, config, vae_encoder(base.vae, batch=1), generator)
    timed("encoding 2 photos in 3 bands, 2 references, 2 class images and copies", started)
    objective, optimizer = Objective(model, config), make_optimizer(model, config)
    started = time.monotonic()
    losses = objective(draw_batch(latents, config, 1000, generator))
    losses["loss"].backward()
    optimizer.step()
    timed(f"training step, batch 1 + 1, loss {float(losses['loss'].detach()):.3f}", started)
    noise = torch.randn(1, 4, *latents.targets.mean.shape[-2:], generator=generator)
    references = References(latents.targets.mean[:, -1], latents.subject_masks, noise, subject.names)
    concept = capture_concept(model, references, dataclasses.asdict(config), 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "concept.safetensors"
        save_concept(concept, file, dtype="bf16")
        print(f"concept file in bf16: {file.stat().st_size / 1e6:.1f} MB")
    pipe = EqDiffPipeline.of(base)
    pipe.attach(model, concept)
    started = time.monotonic()
    pipe("a photo of a {}", seeds=[0], num_inference_steps=1)
    timed("sampling, 1 step of a guided image with its reference pass, and the VAE", started)


if __name__ == "__main__":
    main()
