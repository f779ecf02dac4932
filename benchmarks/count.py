"""The work of training and sampling at SD 1.4's true sizes, counted on the meta device.

    python -m benchmarks.count [--resolution 512] [--no-growth] [--json FILE]

Nothing is computed: our own code runs under FlopCounterMode, where a fused multiply-add is 2. The
unit u is one UNet forward of one 64x64x4 sample, which must be 803 +- 1 GFLOP. Exits 1 when that or
a limit of ours is missed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, random_base, report
from benchmarks.counting import (
    NoValues,
    build,
    check_unit,
    encode_flops,
    per_image,
    sampling,
    some_batch,
    training,
)
from benchmarks.counting_growth import growth, rows_of
from benchmarks.counting_options import option_lines
from eqdiff.objective import Objective
from eqdiff.settings.presets import preset_config
from eqdiff.settings.train import TrainConfig

STEP_LIMIT = 14.0  # u
ABLATION_LIMIT = 8.6  # u
DCI_LIMIT = 1.16  # times a plain image
MATCHING_LIMIT = 108.0  # u an image of 50 steps
IMAGES = (1, 4, 16, 77)  # a subject
FAST_STEPS = 20
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


def part_lines(ours: Objective, config: TrainConfig, u: float) -> Lines:
    """The parts of a training step."""
    batch = some_batch(config)
    whole = training(ours, batch)
    plain = training(build(replace(config, **ABLATION_A)), batch)
    encode = encode_flops(ours, config.resolution)
    samples = len(batch.z0)
    references = len(batch.z_r)
    captions = len(batch.caption)

    own_forward = whole["main"] - whole["plain"]
    own_backward = whole["backward"] - plain["backward"]

    return {
        "text forward": (
            whole["text"] / u,
            f"{captions} captions with the subject; constant ones: once a run",
        ),
        "reference": (
            whole["reference"] / u,
            f"{references} samples, no gradient, stops at the last layer that RRA reads",
        ),
        "reference in full": (
            whole["reference in full"] / u,
            "the same run to the end; not part of the total",
        ),
        "main forward": (whole["main"] / u, f"{samples} samples with RRA and its loss"),
        "main forward, RRA": (own_forward / u, "of which the reference attention"),
        "backward": (
            whole["backward"] / u,
            "through UNet and text encoder to the concept's parameters alone",
        ),
        "backward, RRA": (own_backward / u, "of which more than ablation A's"),
        "backward, text": (
            whole["text backward"] / u,
            "of which through the text encoder to the token rows",
        ),
        "VAE, cached": (0.0, "every encoding was made before the first step, or by an earlier run"),
        "VAE, one encoding": (encode / u, "a picture's; setup needs one for each"),
        "VAE, live": (
            (samples + references) * encode / u,
            f"{samples} pictures and {references} references encoded at each step",
        ),
    }


def training_lines(ours: Objective, config: TrainConfig, u: float) -> Lines:
    """A training step, and what it costs with one thing done otherwise."""
    batch = some_batch(config)
    whole = training(ours, batch, parts=False)["step"]
    plain = training(build(replace(config, **ABLATION_A)), batch, parts=False)["step"]

    fewer = some_batch(replace(config, reference_on_prior=False))
    without_prior = training(ours, fewer, parts=False)["step"]

    encode = encode_flops(ours, config.resolution)
    samples = len(batch.z0)
    pictures = samples + len(batch.z_r)
    with NoValues() as values:
        ours(batch)

    return {
        "step_u": part_lines(ours, config, u),
        "training_step_u": (
            whole / u,
            f"text + reference + main + backward; limit {STEP_LIMIT}",
        ),
        "training_step_live_vae_u": (
            (whole + pictures * encode) / u,
            "with --no_latent_cache",
        ),
        "training_step_no_prior_reference_u": (
            without_prior / u,
            "with --no_reference_on_prior",
        ),
        "ablation_a_step_u": (
            plain / u,
            f"--no-rra --no-fdte --masking none; limit {ABLATION_LIMIT}",
        ),
        "ablation_a_step_live_vae_u": (
            (plain + samples * encode) / u,
            f"the same and its {samples} pictures encoded",
        ),
        "host_reads_per_step": (
            values.reads,
            "values that our code reads from the device, each a wait",
        ),
    }


def sampling_lines(ours: Objective, config: TrainConfig, u: float) -> Lines:
    """A guided step and an image, by the number of images that share the reference."""
    side = config.resolution // 8
    steps = config.num_inference_steps
    both = sampling(ours, side)
    half = sampling(ours, side, halves=1)
    coarse = sampling(build(replace(config, rra_layers=COARSE)), side)
    gigabytes = [steps * parts["cache"] / 1e9 for parts in (both, half, coarse)]

    def by_images(parts: dict[str, int], note: str, count: int = steps) -> Lines:
        return {str(n): (per_image(parts, n, count) / u, note.format(n=n)) for n in IMAGES}

    whole = f"N = {{n}}: {steps} x (main + reference / {{n}}) + text + decode"
    fewer = "--reference_for conditional: one text, RRA in that half"
    return {
        "sampling_step_u": {
            "main": (both["main"] / u, "both halves of guidance, one image"),
            "main, RRA": (
                (both["main"] - both["plain"]) / u,
                "of which the reference attention",
            ),
            "reference": (both["reference"] / u, "two texts, truncated; once a subject"),
        },
        "sampling_text_u": (both["text"] / u, "the prompt and the empty one"),
        "sampling_decode_u": (
            both["decode"] / u,
            "VAE; the reference comes encoded with the concept",
        ),
        "sampling_u_per_image": by_images(both, f"{whole}; limit 118 + 96/{{n}}"),
        "plain_u_per_image": (
            (steps * both["plain"] + both["text"] + both["decode"]) / u,
            f"StableDiffusionPipeline: {steps} x 2 forwards + text + decode",
        ),
        "conditional_reference_u_per_image": by_images(half, fewer),
        "coarse_rra_u_per_image": by_images(
            coarse, f"--rra_layers {' '.join(COARSE)}: reference stops earlier"
        ),
        f"{FAST_STEPS}_steps_u_per_image": by_images(
            both, f"a solver of {FAST_STEPS} steps", FAST_STEPS
        ),
        "reference_cache_gb": {
            "both": (gigabytes[0], f"features of {steps} steps in bf16, both halves of guidance"),
            "conditional": (gigabytes[1], "--reference_for conditional"),
            "coarse": (gigabytes[2], "RRA without the finest level"),
        },
    }


def missed(figures: dict[str, Any]) -> list[str]:
    """A line for each limit that these figures exceed."""
    limits = {"training_step_u": STEP_LIMIT, "ablation_a_step_u": ABLATION_LIMIT}
    lines = [
        f"{name} {figures[name]:.2f} > {most}"
        for name, most in limits.items()
        if figures[name] > most
    ]
    dci = figures["dci_u_per_image"]["ratio"]
    if dci > DCI_LIMIT:
        lines.append(f"DCI: {dci:.3f} > {DCI_LIMIT} times a plain image")
    matched = figures["dreammatcher_u"]["picture"]
    if matched > MATCHING_LIMIT:
        lines.append(f"DreamMatcher: {matched:.1f} u > {MATCHING_LIMIT}")
    for n, value in figures["sampling_u_per_image"].items():
        if value > 118 + 96 / int(n):
            lines.append(f"sampling, N = {n}: {value:.1f} > 118 + 96/{n}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--resolution", type=int, default=512, help="side of the pictures [pixels]; limits: at 512"
    )
    parser.add_argument(
        "--growth", action=argparse.BooleanOptionalAction, default=True, help="cost against sizes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    args = parser.parse_args(argv)

    u = check_unit(random_base("meta").unet)
    config = preset_config("paper", class_word="mug", resolution=args.resolution)
    ours = build(config)
    lines: Lines = {"unit_gflop": (u / 1e9, "u: a plain UNet forward of one 64x64x4 sample")}
    lines |= training_lines(ours, config, u) | sampling_lines(ours, config, u)
    lines |= option_lines(replace(config, **ABLATION_A), u)  # over a Custom Diffusion
    class_images = config.num_class_images
    lines["class_images_u"] = (
        class_images * lines["plain_u_per_image"][0],
        f"the base draws {class_images}, once a class; not in a step",
    )

    figures, notes = parted(lines)
    sizes = growth(ours, config, u, figures) if args.growth else {}
    more = {"growth": sizes} if sizes else {}
    report("count", figures, args.json, notes=notes, results=args.results, more=more)
    if sizes:
        print(rows_of(sizes))

    over = missed(figures) if args.resolution == 512 else []
    for line in over:
        print(f"missed: {line}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
