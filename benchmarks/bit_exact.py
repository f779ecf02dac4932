"""Whether a change of the code changed a bit of what the real commands make on the bundled base.

    python -m benchmarks.bit_exact --write FILE       before the change
    python -m benchmarks.bit_exact --against FILE     after it, on the same machine

A training of 20 steps for each of three settings, one that goes on from its middle, one in two
processes, and the pictures of each concept. Tensors and pixels are hashed. The concept's metadata
are compared key by key, so that a new key is named. Exits 1 and names what differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
FAST = (
    *("--max_train_steps", "20", "--num_class_images", "4", "--class_inference_steps", "2"),
    *("--reference_pool", "8", "--validation_steps", "0", "--report_to", "none"),
    *("--checkpointing_steps", "10"),
)
SETTINGS: dict[str, tuple[str, ...]] = {
    "toybox": (),
    "paper": ("--preset", "paper", "--resolution", "128"),
    "official": ("--preset", "official", "--resolution", "128", "--rare_token", "ktn"),
}
DRAW = (
    *("--num_inference_steps", "3"),
    *("--prompt", "a photo of a {} in the snow", "--prompt", "a mosaic of a {}"),
)

Hashes = dict[str, str]  # what is compared -> its hash or its text


def run(script: str, *words: str, processes: int = 1) -> None:
    """A script of scripts/ by this very Python, quietly."""
    own = {"PYTHON": sys.executable, "EQDIFF_PROCESSES": str(processes), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "scripts" / script), *words]
    subprocess.run(command, check=True, env=os.environ | own, capture_output=True)


def concept_hashes(file: Path) -> Hashes:
    """A hash of the tensors, and each of the metadata."""
    total = hashlib.sha256()
    with safe_open(file, "np") as opened:
        metadata = opened.metadata() or {}
        for name in sorted(opened.keys()):
            tensor = opened.get_tensor(name)
            total.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            total.update(np.ascontiguousarray(tensor).tobytes())
    return {"tensors": total.hexdigest(), **_flat(metadata)}


def _flat(metadata: dict[str, str]) -> Hashes:
    """Metadata with JSON objects taken apart: each setting by itself, in any order; no paths."""
    leaves: Hashes = {}
    for key, text in metadata.items():
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        leaves |= _leaves(key, value)
    return {name: text for name, text in leaves.items() if str(ROOT) not in text}


def _leaves(key: str, value: Any) -> Hashes:
    """The leaves of nested objects by their path."""
    if not isinstance(value, dict):
        return {key: str(value)}
    leaves: Hashes = {}
    for part, inner in value.items():
        leaves |= _leaves(f"{key}.{part}", inner)
    return leaves


def picture_hashes(folder: Path) -> Hashes:
    """A hash of each picture's pixels, in order."""
    hashes = {}
    for number, file in enumerate(sorted((folder / "images").iterdir())):
        pixels = np.asarray(Image.open(file).convert("RGB")).tobytes()
        hashes[f"picture {number}"] = hashlib.sha256(pixels).hexdigest()
    return hashes


def all_hashes(work: Path) -> dict[str, Hashes]:
    """Runs everything and hashes what it made."""
    hashes = {}
    classes = ["--class_data_dir", str(work / "classes")]
    for name, flags in SETTINGS.items():
        out = work / name
        samples = work / f"{name}-samples"
        run("train.sh", *FAST, *flags, *classes, "--output_dir", str(out))
        hashes[name] = concept_hashes(out / "concept.safetensors")
        run("test.sh", str(out), "--output_dir", str(samples), *DRAW)
        hashes[f"{name}, drawn"] = picture_hashes(samples)

    first = min((work / "toybox" / "checkpoints").iterdir())
    again = ["--output_dir", str(work / "again"), "--resume_from_checkpoint", str(first)]
    run("train.sh", *FAST, *classes, *again)
    hashes["resumed"] = concept_hashes(work / "again" / "concept.safetensors")

    run("train.sh", *FAST, *classes, "--output_dir", str(work / "two"), processes=2)
    hashes["two processes"] = concept_hashes(work / "two" / "concept.safetensors")
    return hashes


def differences(before: dict[str, Hashes], after: dict[str, Hashes]) -> list[str]:
    """A line for each hash or text that is not the same in both."""
    lines = []
    for part in sorted(before.keys() | after.keys()):
        old = before.get(part, {})
        new = after.get(part, {})
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                lines.append(f"{part}: {key}: {old.get(key)} -> {new.get(key)}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--write", type=Path, metavar="FILE")
    which.add_argument("--against", type=Path, metavar="FILE")
    args = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        hashes = all_hashes(Path(folder))
    if args.write:
        args.write.write_text(json.dumps(hashes, indent=1) + "\n")
        return 0

    lines = differences(json.loads(args.against.read_text()), hashes)
    print("\n".join(lines) or "every bit is as it was")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
