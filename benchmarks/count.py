"""The work of training and sampling at SD 1.4's true sizes, counted on the meta device: nothing is computed.

    python benchmarks/count.py [--resolution 512] [--no-growth] [--json FILE]

Runs our own code under FlopCounterMode (a fused multiply-add is 2). Unit u: one UNet forward of one 64x64x4 sample,
which must be 803 +- 1 GFLOP. Exits 1 when that or a limit of ours is missed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import RESULTS, random_base, report
from counting import (
    NoValues,
    build,
    check_unit,
    encode_flops,
    encodings,
    per_image,
    sampling,
    some_batch,
    training,
    unet_flops,
)

from eqdiff.config import TrainConfig, preset_config
from eqdiff.objective import Objective

STEP_LIMIT, ABLATION_LIMIT = 14.0, 8.6  # u
IMAGES = (1, 4, 16, 77)  # a subject
FAST_STEPS = 20
RESOLUTIONS = (64, 128, 256, 384, 512, 640, 768)
PHOTOS, TRAININGS, PROCESSES = (1, 5, 20, 100), (100, 300, 600), (1, 2, 4, 8)
ABLATION_A: dict[str, Any] = {"rra": False, "fdte": False, "masking": "none"}
COARSE = ("mid_block", "up_blocks.1", "up_blocks.2")

Lines = dict[str, Any]  # name -> (figure, what it is), or Lines


def parted(lines: Lines, prefix: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """The figures alone, nested as they are; and what each is, by its flattened name."""
    figures: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for name, line in lines.items():
        if isinstance(line, dict):
            figures[name], more = parted(line, f"{prefix}{name} ")
            notes |= more
        else:
            figures[name], notes[f"{prefix}{name}"] = line
    return figures, notes


def training_lines(ours: Objective, config: TrainConfig, u: float) -> Lines:
    """A training step with its parts, and what it costs with one thing done otherwise."""
    batch, plain = some_batch(config), build(replace(config, **ABLATION_A))
    a, b = training(ours, batch), training(plain, batch)
    fewer = training(ours, some_batch(replace(config, reference_on_prior=False)), parts=False)
    encode, n, m = encode_flops(ours, config.resolution), len(batch.z0), len(batch.z_r)
    with NoValues() as values:
        ours(batch)
    parts = {
        "text forward": (a["text"] / u, f"{len(batch.caption)} captions with the subject; constant ones: once a run"),
        "reference": (a["reference"] / u, f"{m} samples, no gradient, stops at the last layer that RRA reads"),
        "reference in full": (a["reference in full"] / u, "the same run to the end; not part of the total"),
        "main forward": (a["main"] / u, f"{n} samples with RRA and its loss"),
        "main forward, RRA": ((a["main"] - a["plain"]) / u, "of which the reference attention"),
        "backward": (a["backward"] / u, "through UNet and text encoder to the concept's parameters alone"),
        "backward, RRA": ((a["backward"] - b["backward"]) / u, "of which more than ablation A's"),
        "backward, text": (a["text backward"] / u, "of which through the text encoder to the token rows"),
        "VAE, cached": (0.0, "every encoding was made before the first step, or by an earlier run"),
        "VAE, one encoding": (encode / u, "a picture's; setup needs one for each"),
        "VAE, live": ((n + m) * encode / u, f"{n} pictures and {m} references encoded at each step"),
    }
    return {
        "step_u": parts,
        "training_step_u": (a["step"] / u, f"text + reference + main + backward; limit {STEP_LIMIT}"),
        "training_step_live_vae_u": ((a["step"] + (n + m) * encode) / u, "with --no_latent_cache"),
        "training_step_no_prior_reference_u": (fewer["step"] / u, "with --no_reference_on_prior"),
        "ablation_a_step_u": (b["step"] / u, f"--no-rra --no-fdte --masking none; limit {ABLATION_LIMIT}"),
        "ablation_a_step_live_vae_u": ((b["step"] + n * encode) / u, f"the same and its {n} pictures encoded"),
        "host_reads_per_step": (values.reads, "values that our code reads from the device, each a wait"),
    }


def sampling_lines(ours: Objective, config: TrainConfig, u: float) -> Lines:
    """A guided step and an image, by the number of images that share the reference; and cheaper ways."""
    side, steps = config.resolution // 8, config.num_inference_steps
    both, half = sampling(ours, side), sampling(ours, side, halves=1)
    coarse = sampling(build(replace(config, rra_layers=COARSE)), side)
    caches = {"both": both, "conditional": half, "coarse": coarse}
    gigabytes = {name: steps * parts["cache"] / 1e9 for name, parts in caches.items()}

    def by_images(parts: dict[str, int], what: str, count: int = steps) -> Lines:
        return {str(n): (per_image(parts, n, count) / u, what.format(n=n)) for n in IMAGES}

    whole = f"N = {{n}}: {steps} x (main + reference / {{n}}) + text + decode; limit 118 + 96/{{n}}"
    return {
        "sampling_step_u": {
            "main": (both["main"] / u, "both halves of guidance, one image"),
            "main, RRA": ((both["main"] - both["plain"]) / u, "of which the reference attention"),
            "reference": (both["reference"] / u, "two texts, truncated; once a subject"),
        },
        "sampling_text_u": (both["text"] / u, "the prompt and the empty one"),
        "sampling_decode_u": (both["decode"] / u, "VAE; the reference comes encoded with the concept"),
        "sampling_u_per_image": by_images(both, whole),
        "plain_u_per_image": (
            (steps * both["plain"] + both["text"] + both["decode"]) / u,
            f"StableDiffusionPipeline: {steps} x 2 forwards + text + decode",
        ),
        "conditional_reference_u_per_image": by_images(half, "--reference_for conditional: one text, RRA in that half"),
        "coarse_rra_u_per_image": by_images(coarse, f"--rra_layers {' '.join(COARSE)}: reference stops earlier"),
        f"{FAST_STEPS}_steps_u_per_image": by_images(both, f"a solver of {FAST_STEPS} steps", FAST_STEPS),
        "reference_cache_gb": {
            "both": (gigabytes["both"], f"features of {steps} steps in bf16, both halves of guidance"),
            "conditional": (gigabytes["conditional"], "--reference_for conditional"),
            "coarse": (gigabytes["coarse"], "RRA without the finest level"),
        },
    }


def growth_by_resolution(ours: Objective, config: TrainConfig, u: float) -> dict[str, dict[str, float]]:
    found = {}
    for pixels in RESOLUTIONS:
        step = training(ours, some_batch(replace(config, resolution=pixels)), parts=False)["step"]
        drawn = sampling(ours, pixels // 8)
        found[f"{pixels} px"] = {
            "UNet forward [GFLOP]": unet_flops(ours.model.unet, pixels // 8) / 1e9,
            "training step [u]": step / u,
            "image, 1 of 16 [u]": per_image(drawn, 16, config.num_inference_steps) / u,
            "reference cache [GB]": config.num_inference_steps * drawn["cache"] / 1e9,
        }
    return found


def growth(ours: Objective, config: TrainConfig, u: float, figures: dict[str, Any]) -> dict[str, Any]:
    """How the cost grows with each size, the others as in `figures`."""
    step, image = figures["training_step_u"], figures["sampling_u_per_image"]
    encodes, encode = {n: encodings(n) for n in PHOTOS}, encode_flops(ours, config.resolution) / u
    concept = sum(p.numel() for p in ours.model.concept_parameters().values())
    return {
        "resolution": growth_by_resolution(ours, config, u),
        "photos": {f"{n}": {"VAE encodes": c, "encoding them [u]": c * encode} for n, c in encodes.items()},
        "training steps": {f"{n}": {"after setup [u]": n * step} for n in TRAININGS},
        "prompts": {n: {"all images [u]": int(n) * value} for n, value in image.items()},
        "processes": {
            f"{n}": {
                "16 prompts, each process [u]": 16 * image["16"] / n,
                "training step, each [u]": step,
                "gradients exchanged [MB]": 4 * concept / 1e6 if n > 1 else 0.0,
            }
            for n in PROCESSES
        },
    }


def rows_of(growth: dict[str, Any]) -> str:
    """The growth table: a line a size, costs side by side."""
    lines = []
    for what, sizes in growth.items():
        columns = list(next(iter(sizes.values())))
        lines.append(f"\n{what:>16}" + "".join(f"{column:>{len(column) + 3}}" for column in columns))
        for size, costs in sizes.items():
            cells = (f"{value:>{len(column) + 3}.{3 * isinstance(value, float)}f}" for column, value in costs.items())
            lines.append(f"{size:>16}" + "".join(cells))
    return "\n".join(lines)


def missed(figures: dict[str, Any]) -> list[str]:
    """The limits that these figures exceed, in words."""
    limits = {"training_step_u": STEP_LIMIT, "ablation_a_step_u": ABLATION_LIMIT}
    found = [f"{name} {figures[name]:.2f} > {most}" for name, most in limits.items() if figures[name] > most]
    images = figures["sampling_u_per_image"].items()
    return found + [f"sampling, N = {n}: {x:.1f} > 118 + 96/{n}" for n, x in images if x > 118 + 96 / int(n)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=512, help="side of the pictures [pixels]; limits are for 512")
    parser.add_argument("--growth", action=argparse.BooleanOptionalAction, default=True, help="cost against sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="record to add a line to")
    args = parser.parse_args(argv)
    u = check_unit(random_base("meta").unet)
    config = preset_config("paper", class_word="mug", resolution=args.resolution)
    ours = build(config)
    lines = {"unit_gflop": (u / 1e9, "u: a plain UNet forward of one 64x64x4 sample")}
    lines |= training_lines(ours, config, u) | sampling_lines(ours, config, u)
    drawn = config.num_class_images * lines["plain_u_per_image"][0]
    lines["class_images_u"] = (drawn, f"the base draws {config.num_class_images}, once a class; not in a step")
    figures, notes = parted(lines)
    sizes = growth(ours, config, u, figures) if args.growth else {}
    report("count", figures, args.json, notes=notes, results=args.results, more={"growth": sizes} if sizes else {})
    if sizes:
        print(rows_of(sizes))
    over = missed(figures) if args.resolution == 512 else []
    for line in over:
        print(f"missed: {line}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
