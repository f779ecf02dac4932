"""What the benchmarks share: facts of the machine, the record of a run, SD 1.4's sizes, times taken side by side."""

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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: E402 (run from its folder)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402

from eqdiff.base import Base, fingerprint  # noqa: E402
from eqdiff.config import BUNDLED_BASE  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results.jsonl"
LIBRARIES = ("diffusers", "transformers", "accelerate")
RESAMPLES = 5000

UNET = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280))
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
    scaling_factor=0.18215,
)
TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def random_base(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Base:
    """SD 1.4 with random weights on "cpu" or "cuda"; on "meta" shapes alone, as its fingerprint says."""
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED_BASE / "tokenizer", model_max_length=77)
    config = CLIPTextConfig(**TEXT, eos_token_id=tokenizer.eos_token_id, projection_dim=768)
    with torch.device(device):
        vae, text, unet = AutoencoderKL(**VAE), CLIPTextModel(config), UNet2DConditionModel(**UNET)
    scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False, steps_offset=1)
    base = Base(vae, text, tokenizer, unet, scheduler, name="random SD 1.4", fingerprint="meta")
    cast(base, dtype)
    if device != "meta":
        base.fingerprint = fingerprint(unet, text)
    return base


def cast(base: Base, dtype: torch.dtype) -> None:
    """Its weights in this precision; buffers stay: positions are no numbers to round."""
    for part in (base.vae, base.text_encoder, base.unet):
        for parameter in part.parameters():
            parameter.data = parameter.data.to(dtype)


def machine() -> dict[str, Any]:
    """What was measured on: processor, cores, memory, GPU. No names of hosts or people."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.is_file() else []
    facts: dict[str, Any] = {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count()}
    facts["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def versions() -> dict[str, str]:
    own = {"python": platform.python_version(), "torch": torch.__version__}  # torch's with the CUDA it is built for
    return own | {name: version(name) for name in LIBRARIES}


def commit() -> str:
    """The short commit, with + if tracked files differ from it; the record of results itself does not count."""

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)

    try:
        head = git("rev-parse", "--short", "HEAD")
        dirty = git("diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results.jsonl").returncode
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+" if dirty else "") if head.returncode == 0 else "unknown"


def arguments() -> list[str]:
    """The command line, absolute paths cut to their last part: the record is passed on."""
    return [re.sub(r"^(--\w+=)?/.*/", r"\1", word) for word in sys.argv[1:]]


def flatten(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as one level: {"a": {"b": 1}} -> {"a b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        whole = f"{prefix}{name}"
        flat |= flatten(value, f"{whole} ") if isinstance(value, Mapping) else {whole: value}
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " .. ".join(map(_shown, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def table(figures: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> str:
    """A line a figure: name, value, what it is."""
    flat, notes = flatten(figures), notes or {}
    texts = {name: _shown(value) for name, value in flat.items()}
    left, right = max(map(len, texts)), max(map(len, texts.values()))
    return "\n".join(f"{n:{left}}  {text:>{right}}  {notes.get(n, '')}".rstrip() for n, text in texts.items())


def report(
    name: str,
    figures: Mapping[str, Any],
    json_path: Path | None,
    *,
    notes: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
    results: Path = RESULTS,
) -> None:
    """Prints the figures as a table, writes them to `json_path`, and adds them to the record with where they are from.

    notes: what a line is, by its flattened name; for the table alone. more: figures that the table leaves out.
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
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(variants: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round. All run in each round, each time from another one on, so that whatever
    else the machine does falls on all alike; a round before is not counted."""
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names[max(number, 0) % len(names) :] + names[: max(number, 0) % len(names)]:
            wait()
            started = time.perf_counter()
            variants[name]()
            wait()
            if number >= 0:
                times[name].append(time.perf_counter() - started)
    return times


def paired_ratio(times: Sequence[float], of: Sequence[float]) -> tuple[float, list[float]]:
    """Ratio of the medians of times taken in the same rounds, and its 95 % bounds by drawing rounds again."""
    pairs = np.stack([np.asarray(times), np.asarray(of)])
    drawn = pairs[:, np.random.default_rng(0).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))]
    medians = np.median(drawn, axis=-1)
    ratio = float(np.divide(*np.median(pairs, axis=-1)))
    return ratio, np.quantile(medians[0] / medians[1], (0.025, 0.975)).tolist()


def spread(times: Mapping[str, Sequence[float]], per: int = 1) -> dict[str, dict[str, float]]:
    """Median and quartiles of each variant's seconds, divided by `per`."""
    quartiles = {name: (np.quantile(t, (0.5, 0.25, 0.75)) / per).tolist() for name, t in times.items()}
    return {name: dict(zip(("median", "q25", "q75"), q, strict=True)) for name, q in quartiles.items()}
