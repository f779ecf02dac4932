"""What a busy neighbour costs a training step, and which setting of threads helps.

    python -m benchmarks.shared_machine [--rounds 3] [--steps 6] [--json FILE]

Each variant is a process of its own, with the environment that its row of VARIANTS says, alone and
beside one process that this benchmark keeps busy. `as scripts do` has what scripts/env.sh chooses
at that moment. All variants run in every round, in turn. A slow one makes fewer steps, at least
one. The toybox base, 128 px, batch 2 + 2.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.common import RESULTS, ROOT, report
from benchmarks.step import steps_of
from benchmarks.workload import folder, fresh_base, make_accelerator, settings, training
from eqdiff.settings.places import BUNDLED_BASE

OURS = "as scripts do"
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")
# name -> environment; a variable that is not named is not set
VARIANTS: dict[str, dict[str, str]] = {
    "torch's own": {},
    "passive waiting": {"OMP_WAIT_POLICY": "PASSIVE"},
    "short spinning": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    OURS: {},
}
LONGEST = 20.0  # seconds of steps


def steps(count: int) -> list[float]:
    """Seconds of each of `count` steps of a default training, fewer where they are slow."""
    args = argparse.Namespace(sd14=False, base=str(BUNDLED_BASE), resolution=None)
    times: list[float] = []
    with folder() as work:
        base = fresh_base(args)
        trainer = training(settings(args, base, work), base, make_accelerator())
        one_more = steps_of(trainer, 1)
        one_more()  # the first is slower
        begun = time.perf_counter()
        while len(times) < count and time.perf_counter() - begun < LONGEST:
            started = time.perf_counter()
            one_more()
            times.append(time.perf_counter() - started)
    return times


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Within: so many processes that never wait."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(1.0)  # until it is seen to be busy
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def measured(name: str, count: int) -> float:
    """The median step [s] of a process of its own with a variant's environment."""
    environment = {key: value for key, value in os.environ.items() if key not in THREADS}
    environment |= {**VARIANTS[name], "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    run = f'"$PYTHON" -m benchmarks.shared_machine --inner {count}'
    if name == OURS:
        run = f"source scripts/env.sh && eqdiff_threads && {run}"
    done = subprocess.run(
        ["bash", "-c", run],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return median(map(float, done.stdout.splitlines()[-1].split()))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each variant is timed")
    parser.add_argument("--steps", type=int, default=6, help="training steps each time")
    parser.add_argument("--inner", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="the record")
    args = parser.parse_args(argv)
    if args.inner:
        print(*steps(args.inner))
        return 0

    times: dict[str, dict[str, list[float]]] = {
        name: {"alone": [], "beside one": []} for name in VARIANTS
    }
    for number in range(args.rounds):
        for place, busy in (("alone", 0), ("beside one", 1)):
            for name in VARIANTS:
                with neighbours(busy):
                    times[name][place].append(measured(name, args.steps))
                seconds = times[name][place][-1]
                print(f"round {number + 1}/{args.rounds}, {place}, {name}: {seconds:.2f} s a step",
                      file=sys.stderr)  # fmt: skip

    figures = {name: {place: median(each) for place, each in row.items()}
               for name, row in times.items()}  # fmt: skip
    for row in figures.values():
        row["beside / alone"] = row["beside one"] / row["alone"]
    report("shared_machine", figures, args.json, more={"times": times}, results=args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
