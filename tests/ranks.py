"""Run by torchrun in a test: trains through the real CLI and writes each rank's own weights."""

import os
import sys
from pathlib import Path

from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_eqdiff  # noqa: E402

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
finish = train_eqdiff.Run.train


def train_and_write(run: train_eqdiff.Run, *how: object) -> None:
    finish(run, *how)
    save_file({n: p.detach().contiguous() for n, p in run.named.items()}, folder / f"rank{rank}.safetensors")


train_eqdiff.Run.train = train_and_write
train_eqdiff.main(sys.argv[2:])
