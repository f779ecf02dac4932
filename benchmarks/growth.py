"""How time and memory grow with photos, steps, resolution, prompts and processes: the real scripts, on the toybox.

    python benchmarks/growth.py [--json FILE]

One thing is changed at a time. Seconds are the script's own split where it prints one (imports left out), else wall
time; memory is the peak of the largest process. What grows at Stable Diffusion's size is counted by count.py.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUBJECT = ROOT / "assets" / "subjects" / "dotted_mug"
STEPS, POOL = 20, 16
PROMPT = "a photo of a {} in the snow, number"


def run(words: list[str], cache: Path, processes: int = 1) -> tuple[float, float, dict[str, float]]:
    """Wall seconds, peak memory of the largest process [GB] and the split that the script printed.

    This process must stay small: a child's peak begins with what its parent held. So torch is imported last.
    """
    told = {**os.environ, "EQDIFF_CACHE": str(cache), "EQDIFF_PROCESSES": str(processes), "PYTHON": sys.executable}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(["bash", *words], cwd=ROOT, env=told, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read()
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{text[-2000:]}")
    line = next((line for line in text.splitlines() if line.startswith("time: ")), "")
    split = {part: float(n) for part, n in re.findall(r"([a-z ]+) ([\d.]+) s(?:,|$)", line.removeprefix("time: "))}
    return seconds, usage.ru_maxrss * 1024 / 1e9, {part.strip(): n for part, n in split.items()}


def train(work: Path, name: str, *flags: str, photos: Path = SUBJECT, processes: int = 1) -> dict[str, float]:
    """A short training with an empty latent cache; class images are there already."""
    cache = work / "cache" / name
    words = ["scripts/train.sh", str(photos), "mug", "--output_dir", str(work / name), "--validation_steps", "0"]
    words += ["--class_data_dir", str(work / "classes"), "--num_class_images", "8", "--reference_pool", str(POOL)]
    words += ["--max_train_steps", str(STEPS), *flags]
    _, memory, split = run(words, cache, processes)
    return {"latents [s]": split["latents"], "training [s]": split["training"], "peak [GB]": memory}


def draw(work: Path, concept: Path, prompts: int, processes: int = 1) -> dict[str, float]:
    file = work / f"{prompts}.txt"
    file.write_text("".join(f"{PROMPT} {n}\n" for n in range(prompts)))
    words = ["scripts/test.sh", str(concept), "--prompts", str(file), "--output_dir", str(work / f"drawn{prompts}")]
    seconds, memory, _ = run(words, work / "cache" / "draw", processes)
    return {"wall [s]": seconds, "peak [GB]": memory}


def photos_of(work: Path, count: int) -> Path:
    """A folder with `count` photos: the bundled ones, again and again."""
    folder, files = work / f"photos{count}", sorted(SUBJECT.glob("*.png"))
    (folder / "masks").mkdir(parents=True)
    for n in range(count):
        file = files[n % len(files)]
        shutil.copy(file, folder / f"{n:03}.png")
        shutil.copy(SUBJECT / "masks" / file.name, folder / "masks" / f"{n:03}.png")
    return folder


def measure(work: Path) -> dict[str, dict[str, float]]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures = measure(Path(work))
    from common import report

    report("growth", figures, args.json)


if __name__ == "__main__":
    main()
