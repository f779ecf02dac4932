"""How the counted cost grows with resolution, photos, steps, prompts and processes."""

from dataclasses import replace
from typing import Any

from benchmarks.counting import (
    encode_flops,
    encodings,
    per_image,
    sampling,
    some_batch,
    training,
    unet_flops,
)
from eqdiff.objective import Objective
from eqdiff.settings.train import TrainConfig

RESOLUTIONS = (64, 128, 256, 384, 512, 640, 768)
PHOTOS = (1, 5, 20, 100)
TRAININGS = (100, 300, 600)  # steps
PROCESSES = (1, 2, 4, 8)


def growth_by_resolution(
    ours: Objective, config: TrainConfig, u: float
) -> dict[str, dict[str, float]]:
    """Costs at each of RESOLUTIONS."""
    costs = {}
    for pixels in RESOLUTIONS:
        batch = some_batch(replace(config, resolution=pixels))
        step = training(ours, batch, parts=False)["step"]
        drawn = sampling(ours, pixels // 8)
        costs[f"{pixels} px"] = {
            "UNet forward [GFLOP]": unet_flops(ours.model.unet, pixels // 8) / 1e9,
            "training step [u]": step / u,
            "image, 1 of 16 [u]": per_image(drawn, 16, config.num_inference_steps) / u,
            "reference cache [GB]": config.num_inference_steps * drawn["cache"] / 1e9,
        }
    return costs


def growth(
    ours: Objective, config: TrainConfig, u: float, figures: dict[str, Any]
) -> dict[str, Any]:
    """How the cost grows with each size, the others as in `figures`."""
    step = figures["training_step_u"]
    image = figures["sampling_u_per_image"]
    encode = encode_flops(ours, config.resolution) / u
    concept = sum(p.numel() for p in ours.model.concept_parameters().values())

    photos = {}
    for number in PHOTOS:
        count = encodings(number)
        photos[f"{number}"] = {"VAE encodes": count, "encoding them [u]": count * encode}

    processes = {
        f"{number}": {
            "16 prompts, each process [u]": 16 * image["16"] / number,
            "training step, each [u]": step,
            "gradients exchanged [MB]": 4 * concept / 1e6 if number > 1 else 0.0,
        }
        for number in PROCESSES
    }

    return {
        "resolution": growth_by_resolution(ours, config, u),
        "photos": photos,
        "training steps": {f"{n}": {"after setup [u]": n * step} for n in TRAININGS},
        "prompts": {n: {"all images [u]": int(n) * value} for n, value in image.items()},
        "processes": processes,
    }


def rows_of(growth: dict[str, Any]) -> str:
    """The growth table: a line a size, costs side by side."""
    lines = []
    for dimension, sizes in growth.items():
        columns = list(next(iter(sizes.values())))
        titles = "".join(f"{column:>{len(column) + 3}}" for column in columns)
        lines.append(f"\n{dimension:>16}{titles}")

        for size, costs in sizes.items():
            cells = []
            for column, value in costs.items():
                digits = 3 if isinstance(value, float) else 0
                cells.append(f"{value:>{len(column) + 3}.{digits}f}")
            lines.append(f"{size:>16}{''.join(cells)}")
    return "\n".join(lines)
