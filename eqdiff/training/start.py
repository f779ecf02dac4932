"""How a training starts: its processes, its folder, the checkpoint that it resumes from."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from eqdiff.base.load import default_precision
from eqdiff.errors import memory_guard
from eqdiff.processes import join_processes
from eqdiff.settings.train import TrainConfig, portable
from eqdiff.training.checkpoint import State, find_checkpoint, require_same
from eqdiff.training.folder import CHECKPOINTS, require_free, require_ours, resumes_in_place
from eqdiff.training.memory import HELP
from eqdiff.training.stop import locked


@contextlib.contextmanager
def open_run(config: TrainConfig) -> Iterator[Accelerator]:
    """The processes of a run, with the output folder locked meanwhile.

    They compute in the precision of the settings, else in the device's best.

    Raises UserError if not all processes run together, another run uses the folder, or memory runs
    out.
    """
    accelerator = join_processes(
        config.mixed_precision or default_precision(),
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=config.output_dir,
    )

    folder = Path(config.output_dir)
    alone = locked(folder) if accelerator.is_main_process else contextlib.nullcontext()
    with alone, memory_guard(HELP):
        yield accelerator


def start_point(config: TrainConfig, processes: int) -> tuple[Path, State] | None:
    """The checkpoint that this training resumes from, with its state; None if it starts anew.

    processes: how many run together. Nothing on disk is changed.

    Raises UserError if the folder holds a concept or an unfinished training and --overwrite is not
    given, if a stranger's file lies where this training would write, or if the checkpoint does not
    fit these settings.
    """
    folder = Path(config.output_dir)
    if not (config.overwrite or resumes_in_place(config)):
        require_free(folder)
    require_ours(config, folder)

    if not config.resume_from_checkpoint:
        return None
    path, state = find_checkpoint(config.resume_from_checkpoint, folder / CHECKPOINTS)
    require_same(path, state, portable(config), processes)
    return path, state
