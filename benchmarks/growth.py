"""How time and memory grow with photos, steps, resolution, prompts and processes.

    python -m benchmarks.growth [--json FILE]

The real scripts run on the toybox, and one thing is changed at a time. Seconds are the script's own
split where it prints one, imports left out, else wall time. Memory is the peak of the largest
process. What grows at Stable Diffusion's sizes is counted by count.py.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUBJECT = ROOT / "assets" / "subjects" / "dotted_mug"
STEPS = 20
SHORT = (
    *("--validation_steps", "0", "--num_class_images", "8", "--reference_pool", "16"),
    *("--max_train_steps", str(STEPS)),
)
PROMPT = "a photo of a {} in the snow, number"

Costs = dict[str, float]


def run(words: list[str], cache: Path, processes: int = 1) -> tuple[float, float, Costs]:
    """Wall seconds, peak memory of the largest process [GB] and the split that the script printed.

    This process must stay small, since a child's peak begins with what its parent held. So torch
    is imported last.
    """
    own = {"EQDIFF_CACHE": str(cache), "EQDIFF_PROCESSES": str(processes), "PYTHON": sys.executable}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            ["bash", *words],
            cwd=ROOT,
            env=os.environ | own,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read()

    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{text[-2000:]}")
    return seconds, usage.ru_maxrss * 1024 / 1e9, split_of(text)


def split_of(text: str) -> Costs:
    """Part -> seconds, from the line "time: photos 0.4 s, training 5.1 s" of a script."""
    lines = [line for line in text.splitlines() if line.startswith("time: ")]
    if not lines:
        return {}
    parts = re.findall(r"([a-z ]+) ([\d.]+) s(?:,|$)", lines[0].removeprefix("time: "))
    return {part.strip(): float(seconds) for part, seconds in parts}


def train(work: Path, name: str, *flags: str, photos: Path = SUBJECT, processes: int = 1) -> Costs:
    """A short training with an empty latent cache; class images are there already."""
    words = ["scripts/train.sh", str(photos), "mug", "--output_dir", str(work / name)]
    words += ["--class_data_dir", str(work / "classes"), *SHORT, *flags]
    _, memory, split = run(words, work / "cache" / name, processes)
    return {"latents [s]": split["latents"], "training [s]": split["training"], "peak [GB]": memory}


def draw(work: Path, concept: Path, prompts: int, processes: int = 1) -> Costs:
    """Draws so many prompts with a concept."""
    file = work / f"{prompts}.txt"
    file.write_text("".join(f"{PROMPT} {n}\n" for n in range(prompts)))
    words = ["scripts/test.sh", str(concept), "--prompts", str(file)]
    words += ["--output_dir", str(work / f"drawn{prompts}")]
    seconds, memory, _ = run(words, work / "cache" / "draw", processes)
    return {"wall [s]": seconds, "peak [GB]": memory}


def photos_of(work: Path, count: int) -> Path:
    """A folder with `count` photos: the bundled ones, again and again."""
    folder = work / f"photos{count}"
    (folder / "masks").mkdir(parents=True)
    files = sorted(SUBJECT.glob("*.png"))
    for n in range(count):
        file = files[n % len(files)]
        shutil.copy(file, folder / f"{n:03}.png")
        shutil.copy(SUBJECT / "masks" / file.name, folder / "masks" / f"{n:03}.png")
    return folder


def measure(work: Path) -> dict[str, Costs]:
    """size -> its costs."""
    table = {}
    concept = work / "warm"
    train(work, "warm", "--max_train_steps", "1")  # draws the class images

    for n in (1, 4, 16):
        table[f"photos {n}"] = train(work, f"photos-{n}", photos=photos_of(work, n))
    for n in (20, 40, 80):
        table[f"steps {n}"] = train(work, f"steps-{n}", "--max_train_steps", str(n))
    for n in (64, 128, 256):
        table[f"resolution {n}"] = train(work, f"side-{n}", "--resolution", str(n))
    for n in (1, 2):
        table[f"training processes {n}"] = train(work, f"ranks-{n}", processes=n)

    for n in (1, 4, 16, 64):
        table[f"prompts {n}"] = draw(work, concept, n)
    for n in (1, 2):
        table[f"drawing processes {n}, 16 prompts"] = draw(work, concept, 16, n)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as work:
        figures = measure(Path(work))

    from benchmarks.common import report  # imports torch, see `run`

    report("growth", figures, args.json)


if __name__ == "__main__":
    main()
