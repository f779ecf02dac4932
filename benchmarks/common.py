"""What the benchmarks share: the machine's facts, the record of a run, SD 1.4's sizes, timing."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from eqdiff.base.identity import fingerprint
from eqdiff.base.load import Base
from eqdiff.settings.places import BUNDLED_BASE

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.jsonl"
LIBRARIES = ("diffusers", "transformers", "accelerate")
RESAMPLES = 5000  # of the rounds, for an interval

UNET = dict(
    sample_size=64,
    cross_attention_dim=768,
    attention_head_dim=8,
    block_out_channels=(320, 640, 1280, 1280),
)
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
    scaling_factor=0.18215,
)
TEXT = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    vocab_size=49408,
    projection_dim=768,
)
SCHEDULE = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def random_base(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Base:
    """SD 1.4 with random weights on "cpu" or "cuda".

    On "meta" it has shapes alone, and "meta" as its fingerprint.
    """
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED_BASE / "tokenizer", model_max_length=77)
    config = CLIPTextConfig(**TEXT, eos_token_id=tokenizer.eos_token_id)
    with torch.device(device):
        vae = AutoencoderKL(**VAE)
        text = CLIPTextModel(config)
        unet = UNet2DConditionModel(**UNET)

    scheduler = DDIMScheduler(**SCHEDULE)
    base = Base(vae, text, tokenizer, unet, scheduler, name="random SD 1.4", fingerprint="meta")
    cast(base, dtype)
    if device != "meta":
        base.fingerprint = fingerprint(unet, text)
    return base


def cast(base: Base, dtype: torch.dtype) -> None:
    """Its weights in this precision; buffers, such as token positions, stay as they are."""
    for part in (base.vae, base.text_encoder, base.unet):
        for parameter in part.parameters():
            parameter.data = parameter.data.to(dtype)


def machine() -> dict[str, Any]:
    """Processor, cores, threads and GPU. No names of hosts or people."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.is_file() else []

    facts: dict[str, Any] = {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries; torch's names the CUDA that it is built for."""
    own = {"python": platform.python_version(), "torch": torch.__version__}
    return own | {name: version(name) for name in LIBRARIES}


def commit() -> str:
    """The short commit, with + if tracked files other than the record of results differ from it."""

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)

    others = ("--", ".", f":!{RESULTS.relative_to(ROOT)}")
    try:
        head = git("rev-parse", "--short", "HEAD")
        dirty = git("diff", "--quiet", "HEAD", *others).returncode
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+" if dirty else "") if head.returncode == 0 else "unknown"


def arguments() -> list[str]:
    """The command line; of absolute paths the last part alone, since the record is passed on."""
    return [re.sub(r"^(--\w+=)?/.*/", r"\1", word) for word in sys.argv[1:]]


def flatten(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as one level: {"a": {"b": 1}} -> {"a b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        whole = f"{prefix}{name}"
        flat |= flatten(value, f"{whole} ") if isinstance(value, Mapping) else {whole: value}
    return flat


def _text_of(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " .. ".join(map(_text_of, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(figures: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> str:
    """A line a figure: name, value, what it is."""
    notes = notes or {}
    texts = {name: _text_of(value) for name, value in flatten(figures).items()}
    left = max(map(len, texts))
    right = max(map(len, texts.values()))

    lines = [
        f"{name:{left}}  {text:>{right}}  {notes.get(name, '')}" for name, text in texts.items()
    ]
    return "\n".join(line.rstrip() for line in lines)


def report(
    name: str,
    figures: Mapping[str, Any],
    json_path: Path | None,
    *,
    notes: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
    results: Path = RESULTS,
) -> None:
    """Prints figures as a table, writes them to `json_path` and adds them to the record `results`.

    A line of the record says where the figures are from. notes: what a figure is, by its flattened
    name, for the table. more: figures that the table leaves out.
    """
    print(table(figures, notes), flush=True)
    figures = {**figures, **(more or {})}
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=1) + "\n")

    row = {
        "benchmark": name,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "arguments": arguments(),
        "figures": figures,
    }
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")


def wait() -> None:
    """Waits until the GPU has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(act: Callable[[], None]) -> float:
    """Seconds of one call, the GPU's work with it."""
    wait()
    started = time.perf_counter()
    act()
    wait()
    return time.perf_counter() - started


def interleaved(variants: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round.

    All run in each round, each time from another one on, so that whatever else the machine does
    falls on all alike. A round before the first is not counted.
    """
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        first = max(number, 0) % len(names)
        for name in names[first:] + names[:first]:
            seconds = seconds_of(variants[name])
            if number >= 0:
                times[name].append(seconds)
    return times


def paired_ratio(times: Sequence[float], of: Sequence[float]) -> tuple[float, list[float]]:
    """Ratio of the medians of times taken in the same rounds, and its 95 % bounds.

    The bounds come from drawing rounds again, with replacement.
    """
    pairs = np.stack([np.asarray(times), np.asarray(of)])
    rounds = pairs.shape[1]
    draws = np.random.default_rng(0).integers(rounds, size=(RESAMPLES, rounds))

    ratio = float(np.divide(*np.median(pairs, axis=-1)))
    medians = np.median(pairs[:, draws], axis=-1)
    return ratio, np.quantile(medians[0] / medians[1], (0.025, 0.975)).tolist()


def spread(times: Mapping[str, Sequence[float]], per: int = 1) -> dict[str, dict[str, float]]:
    """Median and quartiles of each variant's seconds, divided by `per`."""
    figures = {}
    for name, seconds in times.items():
        median, low, high = (np.quantile(seconds, (0.5, 0.25, 0.75)) / per).tolist()
        figures[name] = {"median": median, "q25": low, "q75": high}
    return figures
