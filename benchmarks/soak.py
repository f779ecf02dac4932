"""Whether memory stays flat in a long-lived process: many short trainings in a row, then many images in one run.

    python benchmarks/soak.py [--customizations 200] [--images 1000] [--json FILE]

The real command lines, `main(argv)` of train_eqdiff.py and test_eqdiff.py, in this one process, on the tiny base of the
tests (random weights, 64 pixels): what leaks, leaks per training or per image, whatever the size of the base. Memory is
what the process holds (RSS) after a garbage collection, and the tensors alive then; while images are drawn, RSS each
quarter of a second beside the images written so far. The growth is the slope of a straight line after the warm-up,
drawn through the means of blocks, with its 95 % interval.
Exit status 1: the interval's upper end is above a limit (`LIMITS`), or tensors accumulate.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common import RESULTS, ROOT, report

sys.path.insert(0, str(ROOT / "tests"))

from helpers import TINY, flags  # noqa: E402 (lies beside the tests)
from tiny import make_base, make_subject  # noqa: E402

import test_eqdiff  # noqa: E402
import train_eqdiff  # noqa: E402

WARM_UP = 0.2  # share of the trainings or images before the line begins: caches and memory pools fill
BLOCKS = 12  # neighbouring readings are alike; means of blocks are nearly independent
STUDENT = 2.228  # two-sided 95 % quantile of Student's t at BLOCKS - 2 degrees of freedom
LIMITS = {"mb_per_customization": 0.1, "mb_per_image": 0.01}  # one leaked tiny UNet is 2 MB
EACH = 4  # customizations between readings, each after a collection
# five steps with all that a training does beside them, and as little of it as can be
SHORT: dict[str, Any] = {
    **TINY,
    **{"max_train_steps": 5, "checkpointing_steps": 5, "validation_steps": 5, "log_steps": 5, "train_batch_size": 1},
    **{"num_class_images": 1, "reference_pool": 4, "num_inference_steps": 2},
}
PROMPTS = ("a photo of a {}", "a mosaic of a {}", "a {} on the beach", "a red {} in the snow")


def memory_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def live_tensors() -> int:
    """Tensors that Python can still reach, after a collection."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, list[float]]:
    """Slope of y over x after the warm-up, and its 95 % interval, from the means of BLOCKS blocks."""
    skipped = int(WARM_UP * len(x))
    blocks = [np.array_split(np.asarray(values[skipped:], float), BLOCKS) for values in (x, y)]
    across, up = (np.array([block.mean() for block in part]) for part in blocks)
    centred = across - across.mean()
    value = float(centred @ up / (centred @ centred))
    left = up - up.mean() - value * centred
    half = STUDENT * float(np.sqrt(left @ left / (BLOCKS - 2) / (centred @ centred)))
    return value, [value - half, value + half]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hundreds of runs say the same; errors come through as exceptions."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def progress(what: str, done: int, of: int, started: float) -> None:
    left = (time.monotonic() - started) / done * (of - done)
    print(f"{what} {done}/{of}, {memory_mb():.0f} MB, {left:.0f} s left", file=sys.stderr, flush=True)


def customize(count: int, base: Path, subject: Path, folder: Path) -> dict[str, Any]:
    """`count` trainings one after another, each with a checkpoint and a preview, into the same folder."""
    prompts = folder / "prompts.txt"
    prompts.write_text(PROMPTS[0] + "\n")
    given = {"pretrained_model_name_or_path": base, "instance_data_dir": subject, "class_word": "dog toy"}
    argv = flags({**SHORT, **given, "output_dir": folder / "out", "validation_prompts": prompts})
    numbers, megabytes, tensors, started = [], [], [], time.monotonic()
    for number in range(1, count + 1):
        with silent():
            train_eqdiff.main([*argv, "--overwrite", "--seed", str(number)])
        if number % EACH == 0 or number == 1:
            numbers.append(number)
            tensors.append(live_tensors())
            megabytes.append(memory_mb())
            progress("customization", number, count, started)
    return summary("customization", numbers, megabytes, tensors, started)


def draw(count: int, base: Path, folder: Path) -> dict[str, Any]:
    """`count` images in one run of test_eqdiff.py with the last training's concept; a thread watches."""
    samples = folder / "samples"
    seen: list[tuple[int, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            done = sum(name.endswith(".png") for _, _, names in os.walk(samples) for name in names)
            if done:
                seen.append((done, memory_mb()))

    given = {"pretrained_model_name_or_path": base, "concept": folder / "out", "output_dir": samples}
    argv = [*flags(given), "--num_images_per_prompt", str(count // len(PROMPTS)), "--num_inference_steps", "2"]
    tensors, started = [live_tensors()], time.monotonic()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with silent():
            test_eqdiff.main([*argv, "--prompt", *PROMPTS])
    finally:
        over.set()
        watcher.join()
    tensors.append(live_tensors())
    drawing = [(done, megabytes) for done, megabytes in seen if done < count]  # what follows is the sheet of all
    found = summary("image", *map(list, zip(*drawing, strict=True)), tensors, started)
    return found | {"mb_after_the_sheet": round(memory_mb(), 2), "mb_at_most": round(max(mb for _, mb in seen), 2)}


def summary(of: str, x: list[int], megabytes: list[float], tensors: list[int], started: float) -> dict[str, Any]:
    growth, interval = slope(x, megabytes)
    return {
        f"mb_per_{of}": round(growth, 5),  # megabytes: 10^6 bytes
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
    """What is not flat, a line each."""
    wrong = []
    for name, part in figures.items():
        (key,) = LIMITS.keys() & part.keys()
        if part["interval"][1] > LIMITS[key]:
            wrong.append(f"{name}: up to {part['interval'][1]:.4f} {key}, limit {LIMITS[key]}")
        if part["tensors_last"] > part["tensors_first"]:
            wrong.append(f"{name}: {part['tensors_first']} live tensors at first, {part['tensors_last']} at last")
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customizations", type=int, default=200, help="trainings of 5 steps in a row")
    parser.add_argument("--images", type=int, default=1000, help="images of one sampling run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="record to add a line to")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"EQDIFF_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        (folder / "base").mkdir()
        base, subject = make_base(folder / "base"), make_subject(folder / "disc")
        figures = {"training": customize(args.customizations, base, subject, folder)}
        figures["sampling"] = draw(args.images, base, folder)
    report("soak", figures, args.json, results=args.results)
    wrong = failures(figures)
    print("\n".join(["not flat:", *wrong] if wrong else ["memory stays flat"]), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
