"""Trains the base, for hours, in the background: `python -m toybox.train_base start`.

Other actions: stop, status, finish, cores N. A run lives in $EQDIFF_CACHE/toybox/run, else in
~/.cache/eqdiff/toybox/run, with a copy of this package and of what it reads. It writes nothing
into the checkout: `python -m toybox.publish` does. `start` goes on from the newest checkpoint
there, else from the committed weights with --from_committed, else from nothing. --recipe names how
it trains. Its files:

    cores          how many cores it may use, read before every step: 2, 1 to make room, 0 to wait
    finish         once it is there, the rate falls to nothing over a ninth of the samples so far,
                   and the run ends
    checkpoint/    weights, average, optimizer and position, every ten minutes
    progress.jsonl the marks, every half hour; sheets/: pictures of fixed captions
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from toybox.base_model import RECIPES, Recipe
from toybox.run import Cores, Run
from toybox.schedule import constant_then_fall

SAVE_MINUTES = 10.0
MARK_MINUTES = 30.0
LOG_STEPS = 50
FALL_AT = 0.9  # of all samples: the rest is the fall, a ninth of what comes before it
PARTS = ("base/vae", "base/tokenizer", "clip", "dino", "judge")  # what a run reads
WEIGHTS = ("base/unet", "base/text_encoder")  # what it may start from


def cache() -> Path:
    """Where the toybox keeps what takes long to make."""
    home = Path.home() / ".cache" / "eqdiff"
    return Path(os.environ.get("EQDIFF_CACHE", home)) / "toybox"


class Timer:
    """Tells whether so many minutes have passed since its last restart."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.last = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self.last > self.seconds

    def restart(self) -> None:
        self.last = time.monotonic()


class Speed:
    """Counts samples a second since the last report."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.restart()

    def restart(self) -> None:
        self.began = time.monotonic()
        self.since = self.run.samples

    def report(self, losses: dict[str, Tensor]) -> str:
        """A line for the log; counts anew from here."""
        speed = (self.run.samples - self.since) / (time.monotonic() - self.began)
        parts = ", ".join(f"{name} {float(value):.4f}" for name, value in losses.items())
        self.restart()
        return f"{self.run.samples} samples, {speed:.1f} a second, {parts}"


def agreed(run: Run, wishes: Sequence[bool]) -> list[bool]:
    """The first process's answers: clocks differ, and all processes must do the same."""
    answers = torch.tensor(wishes).int()
    if run.world > 1:
        torch.distributed.broadcast(answers, 0)
    return [bool(answer) for answer in answers]


def train(folder: Path, data: Path, total: int, recipe: Recipe | None = None) -> None:
    """Trains until `total` samples, the end of a fall that was asked for, or a kill."""
    run = Run(folder, data, recipe)
    cores = Cores(folder / "cores", run.rank)
    to_save = Timer(SAVE_MINUTES)
    to_mark = Timer(MARK_MINUTES)
    run.accelerator.print(f"{run.world} processes, from sample {run.samples}")
    speed = Speed(run)

    while constant_then_fall(run.samples, run.fall_from) > 0:
        cores.obey()
        started = time.monotonic()
        losses = run.advance()
        run.seconds += time.monotonic() - started

        wishes = (to_save.due, to_mark.due, (folder / "finish").exists())
        save, mark, finish = agreed(run, wishes)

        if run.fall_from is None and (finish or run.samples >= FALL_AT * total):
            run.fall_from = run.samples
        if save:
            run.save()
            to_save.restart()
        if mark:
            run.mark()
            to_mark.restart()
        if run.step % LOG_STEPS == 0:
            run.accelerator.print(speed.report(losses))

    run.save()
    run.mark()
    run.accelerator.print("done")


def start(args: argparse.Namespace) -> None:
    """Starts the run's processes in the background, with copies of the code and what it reads."""
    folder = cache() / "run"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(Path(__file__).parent, folder / "toybox", dirs_exist_ok=True)
    for part in (*PARTS, *(WEIGHTS if args.from_committed else ())):
        shutil.copytree(args.assets / part, folder / "assets" / part, dirs_exist_ok=True)
    progress = folder / "progress.jsonl"
    if args.from_committed and not progress.exists():
        shutil.copy(Path(__file__).with_name(progress.name), progress)

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={args.processes}", "-m", "toybox.train_base", "run"]
    command += ["--total", str(args.total), "--data", str(args.data.resolve())]
    command += ["--recipe", args.recipe] if args.recipe else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}

    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (folder / "pid").write_text(str(process.pid))
    print(f"training in the background, process {process.pid}: see {folder / 'log.txt'}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = ("start", "run", "stop", "status", "finish", "cores")
    parser.add_argument("action", choices=actions)
    parser.add_argument("number", nargs="?", type=int, help="of cores")

    assets = Path("assets/toybox")
    parser.add_argument(
        "--assets", type=Path, default=assets, metavar="DIR", help="where parts are"
    )
    latents = cache() / "latents"
    parser.add_argument(
        "--data", type=Path, default=latents, metavar="DIR", help="made by toybox.latents"
    )
    parser.add_argument("--total", type=int, default=1_200_000, help="samples, the fall included")
    parser.add_argument("--recipe", choices=RECIPES, help="default: the checkpoint's, else first")

    processes = 1 if torch.cuda.is_available() else 2
    parser.add_argument("--processes", type=int, default=processes)
    parser.add_argument(
        "--from_committed", action="store_true", help="begin with the weights under --assets"
    )
    return parser


def main() -> None:
    args = arguments().parse_args()
    folder = cache() / "run"

    if args.action == "start":
        start(args)
    elif args.action == "run":
        torch.set_num_threads(1)
        train(Path.cwd(), args.data, args.total, RECIPES.get(args.recipe))
    elif args.action == "stop":
        os.killpg(int((folder / "pid").read_text()), signal.SIGTERM)
    elif args.action == "finish":
        (folder / "finish").touch()
    elif args.action == "cores":
        (folder / "cores").write_text(str(args.number))
    else:
        lines = (folder / "log.txt").read_text().splitlines(keepends=True)
        print("".join(lines[-3:]), end="")


if __name__ == "__main__":
    main()
