"""Run by torchrun in a test: trains through the real CLI and writes each rank's own weights."""

import os
import sys
from pathlib import Path

from helpers import run_train
from safetensors.torch import save_file

from eqdiff.training.keeper import Keeper

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
finish = Keeper.finish


def write_and_finish(keeper: Keeper) -> None:
    trained = keeper.trainer.trained
    tensors = {name: p.detach().contiguous() for name, p in trained.items()}
    save_file(tensors, folder / f"rank{rank}.safetensors")
    finish(keeper)


Keeper.finish = write_and_finish
run_train(sys.argv[2:])
