"""Whether memory stays flat in a long-lived process: many short trainings, then many images.

    python -m benchmarks.soak [--customizations 200] [--images 1000] [--json FILE]

The real command lines of train_eqdiff.py and test_eqdiff.py run in this one process, on the tiny
base of the tests (random weights, 64 pixels). What leaks, leaks per training or per image, whatever
the size of the base. Memory is what the process holds (RSS) after a garbage collection, and the
tensors alive then. While images are drawn, it is RSS each quarter of a second beside the images
written so far. The growth is the slope of a straight line after the warm-up, drawn through the
means of blocks, with its 95 % interval.

The libraries leak a little each time a base is loaded, whatever its size: safetensors 0.7 and 0.8
keep two Python integers a tensor, tokenizers the word cache of each tokenizer that was used. What
loads by diffusers alone add is measured first, and taken off what a training adds. Exit status 1:
the upper end of the rest, or of what an image adds, is above its limit (`LIMITS`), or tensors
accumulate.
"""

import argparse
import contextlib
import gc
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.common import RESULTS, report
from eqdiff.evaluation.report import student
from tests.helpers import TINY, flags, run_test, run_train
from tests.tiny import make_base, make_subject

# share of the trainings or images before the line begins: caches and memory pools fill
WARM_UP = 0.2
BLOCKS = 12  # neighbouring readings are alike; means of blocks are nearly independent
# one leaked tiny UNet is 2 MB
LIMITS = {"ours_mb_per_customization": 0.1, "mb_per_image": 0.01}
EACH = 4  # trainings or loads between readings, each after a collection
POLL = 0.25  # seconds between readings while images are drawn
# five steps with all that a training does beside them, and as little of it as can be
SHORT: dict[str, Any] = {
    **TINY,
    "max_train_steps": 5,
    "checkpointing_steps": 5,
    "validation_steps": 5,
    "log_steps": 5,
    "train_batch_size": 1,
    "num_class_images": 1,
    "reference_pool": 4,
    "num_inference_steps": 2,
}
PROMPTS = ("a photo of a {}", "a mosaic of a {}", "a {} on the beach", "a red {} in the snow")


def memory_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def live_tensors() -> int:
    """Tensors that Python can still reach, after a collection."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, list[float]]:
    """Slope of y over x after the warm-up and its 95 % interval, from means of BLOCKS blocks."""
    skipped = int(WARM_UP * len(x))
    blocks = [np.array_split(np.asarray(values[skipped:], float), BLOCKS) for values in (x, y)]
    across, up = (np.array([block.mean() for block in part]) for part in blocks)

    centred = across - across.mean()
    square = centred @ centred
    value = float(centred @ up / square)
    rest = up - up.mean() - value * centred
    half = student(BLOCKS - 2) * float(np.sqrt(rest @ rest / (BLOCKS - 2) / square))
    return value, [value - half, value + half]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drops what is printed within; errors come through as exceptions."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def of_ours(training: dict[str, Any], loading: dict[str, Any]) -> dict[str, Any]:
    """What a training adds beyond the libraries' own growth when they load its base once."""
    growth = training["mb_per_customization"] - loading["mb_per_load"]
    halves = [(part["interval"][1] - part["interval"][0]) / 2 for part in (training, loading)]
    half = float(np.hypot(*halves))
    interval = [round(growth - half, 5), round(growth + half, 5)]
    return {"ours_mb_per_customization": round(growth, 5), "ours_interval": interval}


def say_progress(what: str, done: int, of: int, started: float) -> None:
    left = (time.monotonic() - started) / done * (of - done)
    line = f"{what} {done}/{of}, {memory_mb():.0f} MB, {left:.0f} s left"
    print(line, file=sys.stderr, flush=True)


def load(count: int, base: Path) -> dict[str, Any]:
    """The base loaded `count` times by diffusers, and its tokenizer used: the libraries' share."""
    from diffusers import StableDiffusionPipeline

    def once(_: int) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
        pipe.tokenizer(list(PROMPTS))

    return repeated("load", count, once)


def customize(count: int, base: Path, subject: Path, folder: Path) -> dict[str, Any]:
    """`count` trainings one after another, each with a checkpoint and a preview.

    All write into the same folder.
    """
    prompts = folder / "prompts.txt"
    prompts.write_text(PROMPTS[0] + "\n")
    settings = {
        **SHORT,
        "pretrained_model_name_or_path": base,
        "instance_data_dir": subject,
        "class_word": "dog toy",
        "output_dir": folder / "out",
        "validation_prompts": prompts,
    }

    def once(number: int) -> None:
        run_train([*flags(settings), "--overwrite", "--seed", str(number)])

    return repeated("customization", count, once)


def repeated(what: str, count: int, deed: Callable[[int], None]) -> dict[str, Any]:
    """A deed done `count` times, numbered from 1, and what the process holds in between."""
    numbers: list[int] = []
    megabytes: list[float] = []
    tensors: list[int] = []
    started = time.monotonic()
    for number in range(1, count + 1):
        with silent():
            deed(number)
        if number % EACH == 0 or number == 1:
            numbers.append(number)
            tensors.append(live_tensors())
            megabytes.append(memory_mb())
            say_progress(what, number, count, started)
    return summary(what, numbers, megabytes, tensors, started)


@contextlib.contextmanager
def watching(look: Callable[[], None]) -> Iterator[None]:
    """Calls `look` every POLL seconds, in a thread of its own."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def draw(count: int, base: Path, folder: Path) -> dict[str, Any]:
    """`count` images in one run of test_eqdiff.py with the last training's concept."""
    samples = folder / "samples"
    readings: list[tuple[int, float]] = []  # images so far, megabytes

    def look() -> None:
        done = sum(name.endswith(".png") for _, _, names in os.walk(samples) for name in names)
        if done:
            readings.append((done, memory_mb()))

    given = {
        "pretrained_model_name_or_path": base,
        "concept": folder / "out",
        "output_dir": samples,
        "num_images_per_prompt": count // len(PROMPTS),
        "num_inference_steps": 2,
    }
    tensors = [live_tensors()]
    started = time.monotonic()
    with watching(look), silent():
        run_test([*flags(given), "--prompt", *PROMPTS])
    tensors.append(live_tensors())

    drawing = [reading for reading in readings if reading[0] < count]  # later comes the sheet
    numbers = [done for done, _ in drawing]
    figures = summary("image", numbers, [mb for _, mb in drawing], tensors, started)
    figures["mb_after_the_sheet"] = round(memory_mb(), 2)
    figures["mb_at_most"] = round(max(mb for _, mb in readings), 2)
    return figures


def summary(
    of: str, x: list[int], megabytes: list[float], tensors: list[int], started: float
) -> dict[str, Any]:
    """The figures of a part; megabytes are 10^6 bytes."""
    growth, interval = slope(x, megabytes)
    return {
        f"mb_per_{of}": round(growth, 5),
        "interval": [round(bound, 5) for bound in interval],
        "readings": len(x),
        "up_to": x[-1],
        "mb_first": round(megabytes[0], 2),
        "mb_after_warm_up": round(megabytes[int(WARM_UP * len(x))], 2),
        "mb_last": round(megabytes[-1], 2),
        "tensors_first": tensors[0],
        "tensors_last": tensors[-1],
        "seconds": round(time.monotonic() - started, 1),
    }


def failures(figures: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each figure that is not flat."""
    lines = []
    for name, part in figures.items():
        high = part.get("ours_interval", part["interval"])[1]
        first = part["tensors_first"]
        last = part["tensors_last"]
        lines += [
            f"{name}: up to {high:.4f} {key}, limit {limit}"
            for key, limit in LIMITS.items()
            if key in part and high > limit
        ]
        if last > first:
            lines.append(f"{name}: {first} live tensors at first, {last} at last")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customizations", type=int, default=200, help="trainings of 5 steps")
    parser.add_argument("--images", type=int, default=1000, help="images of one sampling run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    args = parser.parse_args(argv)

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EQDIFF_CACHE"] = str(folder / "cache")
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        (folder / "base").mkdir()
        base = make_base(folder / "base")
        subject = make_subject(folder / "disc")
        figures = {"loading": load(args.customizations, base)}
        figures["training"] = customize(args.customizations, base, subject, folder)
        figures["training"] |= of_ours(figures["training"], figures["loading"])
        figures["sampling"] = draw(args.images, base, folder)

    report("soak", figures, args.json, results=args.results)
    lines = failures(figures)
    print("\n".join(["not flat:", *lines] if lines else ["memory stays flat"]), flush=True)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
