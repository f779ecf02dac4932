"""Rebuilds the paper's tables: `bash scripts/reproduce.sh`, see docs/reproduce.md.

Plan, cells, tables. A cell that is there is not run again, so a killed run goes on where it stood.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

import eqdiff.process.early  # noqa: F401  first: for Ctrl-C while the rest is imported
from eqdiff.errors import main_guard, require
from eqdiff.files import replacing
from eqdiff.settings.options import to_json
from eqdiff.settings.places import ASSETS, is_bundled, resolve_base
from eqdiff.settings.presets import parse
from eqdiff.wording import say, start_logging
from studies.reproduce import plan as plans
from studies.reproduce import tables
from studies.reproduce.attempts import REAL
from studies.reproduce.cell import Cell, Row
from studies.reproduce.methods import TABLES
from studies.reproduce.plan import Ground, Plan
from studies.reproduce.settings import CLIP_MODEL, DINO_MODEL, ReproduceConfig
from studies.reproduce.store import Store

CONFIG = "config.json"  # the mark that a folder is ours


class Progress:
    """One bar with the time that is left, and failures as they come."""

    def __init__(self, store: Store, cells: dict[str, Cell], names: dict[str, str]) -> None:
        self.store = store
        self.cells = cells
        self.names = names
        self.open = dict.fromkeys(cells)
        self.told: set[tuple[str, int]] = set()
        # the time left is by the mean of all cells: those of a method take alike, others do not;
        # a log gets a line a minute
        often = 1.0 if sys.stderr.isatty() else 60.0
        self.bar = tqdm(total=len(cells), desc="cells", unit="cell", smoothing=0, mininterval=often)

    def __call__(self) -> None:
        """Looks at what has ended since."""
        for key in list(self.open):
            for number, line in enumerate(self.store.failures(key), start=1):
                if (key, number) not in self.told:
                    self.told.add((key, number))
                    self.bar.write(f"failed, try {number}: {self.names[key]}: {line}")
            if self.store.done(key) or self.store.given_up(key):
                del self.open[key]
        self.bar.update(len(self.cells) - len(self.open) - self.bar.n)


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    start_logging()
    config = parse(ReproduceConfig, argv)
    if config.engine == "ray":
        from studies.reproduce.engine_ray import require_ray

        require_ray()
    plan, speeds, folder = prepare(config)
    store = Store(folder)
    cells = plan.unique()
    rows = store.gather()

    if config.verify:
        from studies.reproduce.verify import verify

        sys.exit(verify(plan, store))
    if config.rating_sheet:
        from studies.reproduce import rating

        asked = (config.rating_sheet, config.rating_pairs, config.rating_seed)
        sheet, key = rating.write_sheet(plan, store, *asked)
        say(f"done: send {os.path.relpath(sheet)} to who rates, keep {os.path.relpath(key)}")
        return
    if config.fresh and not config.plan:
        store.forget(cells)
        rows = store.gather()
    missing = {key: cell for key, cell in cells.items() if key not in rows}
    for line in account(plan, missing, rows, speeds):
        say(line)
    if config.plan:
        return

    store.pardon(missing)
    started = time.monotonic()
    if missing:
        run_cells(plan, store, missing)
    finish(plan, store, missing, time.monotonic() - started)


def finish(plan: Plan, store: Store, missing: dict[str, Cell], seconds: float) -> None:
    """Writes the tables and says what became of the cells; leaves with status 1 if some failed."""
    rows = store.gather()
    why = {key: reason for key in missing if (reason := store.given_up(key))}
    pages = tables.write(plan, rows, why, store.folder)
    ran = len(missing.keys() & rows.keys())
    names = plan.names()
    for key, reason in why.items():
        say(f"failed: {names[key]}: {reason}")

    took = f" in {seconds / 60:.1f} minutes" if missing else ""
    say(f"done: {ran} cells were run{took}; see {', '.join(map(os.path.relpath, pages))}")
    if why:
        sys.exit(1)


def run_cells(plan: Plan, store: Store, missing: dict[str, Cell], how: str = REAL) -> None:
    """Runs cells by the engine that is asked for, until each is done or given up."""
    import torch

    config = plan.config
    report = Progress(store, missing, plan.names())
    cells = list(missing.values())
    torch.cuda.empty_cache()  # the cells need the memory that the plan took
    try:
        if config.engine == "ray":
            from studies.reproduce import engine_ray

            engine_ray.run(
                store,
                cells,
                report,
                address=config.address,
                gpus=config.gpus_per_cell,
                kinds=config.kept,
                how=how,
            )
        else:
            from studies.reproduce import engine_local

            gpus = gpu_count()
            processes = plan.processes(gpus)
            options: dict[str, Any] = dict(processes=processes, gpus=gpus, kinds=config.kept)
            engine_local.run(store, cells, report, how=how, **options)
    finally:
        report.bar.close()


def gpu_count() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def prepare(config: ReproduceConfig) -> tuple[Plan, Any, Path]:
    """The plan, the speeds of its base here, and the folder of cells and tables.

    Raises UserError if base, judges or subjects cannot be used, if the folder is another's, or if
    masks wait for approval.
    """
    from studies.reproduce import dreambench
    from studies.reproduce import subjects as subject_folders

    plans.require_flags(config)
    if config.output_dir:
        require_ours(Path(config.output_dir))
    where = resolve_base(config.base)
    toy = is_bundled(where)
    bench = dreambench.root_of(Path(config.subjects)) if config.subjects else None
    pictures = dreambench.find_pictures(bench) if bench else []
    folders: list[Path] = []
    if config.subjects and not bench:
        folders = subject_folders.find_subjects(Path(config.subjects))
    require(
        folders or pictures or toy,
        f"--base {where}: no photos named; give --subjects, a folder with a folder a subject",
    )
    for folder in folders:
        subject_folders.class_word_of(folder)  # now: the base takes its time

    require_fitting(config, toy)
    ground, speeds = grounded(config, where, toy)
    target = Path(config.output_dir or plans.default_folder(ground, config.smoke))
    own_folder(target, config)
    work = target / "work" / "subjects"
    most = 1 if config.smoke else config.num_subjects
    folders += dreambench.laid_out(pictures[:most], target / "work" / "dreambench")
    if folders:
        found, sheets = subject_folders.prepared(folders[:most], work)
        approved = config.approve_masks or config.smoke
        subject_folders.require_approved(sheets, work, approved)
    else:
        count = most or subject_folders.TOYBOX_COUNT
        found = subject_folders.toybox(count, work, config.toybox_table)

    return plans.made(config, ground, found), speeds, target


def require_ours(folder: Path) -> None:
    """Raises UserError if it is no folder, or holds what is not ours."""
    is_other = folder.exists() and not folder.is_dir()
    require(not is_other, f"--output_dir {folder}: not a folder; name another")

    is_strange = folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file()
    remedy = "it holds files that are not ours; name another"
    require(not is_strange, f"--output_dir {folder}: {remedy}")


def require_fitting(config: ReproduceConfig, toy: bool) -> None:
    """Raises UserError if a table is of the toybox alone, or chooses settings on test subjects."""
    for name in dict.fromkeys((*config.tables, *config.verify)):
        table = TABLES[name]
        require(
            not table.toybox or (toy and not config.subjects),
            f"--tables {name}: its settings are the toybox's; leave out --base and --subjects",
        )
        require(
            not table.dev or config.toybox_table == "dev",
            f"--tables {name}: it chooses settings; add --toybox_table dev",
        )


def own_folder(folder: Path, config: ReproduceConfig) -> None:
    """Makes the folder ours. What only looks leaves the settings of the last run as they are.

    Raises UserError if it holds what is not ours, or cannot be written.
    """
    require_ours(folder)
    only_looks = config.plan or config.verify or config.rating_sheet
    if only_looks and (folder / CONFIG).is_file():
        return

    portable = dataclasses.replace(
        config, base=None, subjects=None, clip=None, dino=None, output_dir=None, address=None
    )
    with replacing(folder / CONFIG, shared=True) as beside:
        beside.write_text(to_json(portable), encoding="utf-8")


def grounded(config: ReproduceConfig, where: str, toy: bool) -> tuple[Ground, Any]:
    """Base, CLIP and DINO as cells know them, and the base's speeds here.

    Raises UserError if one cannot be loaded.
    """
    from eqdiff.base.identity import fingerprint
    from eqdiff.base.load import load_base
    from studies.reproduce import cost
    from studies.reproduce.measures import eyes_of

    own = {name: str(ASSETS / "toybox" / name) for name in ("clip", "dino")}
    usual = own if toy else {"clip": CLIP_MODEL, "dino": DINO_MODEL}
    names = {name: getattr(config, name) or usual[name] for name in usual}
    places = {name: absolute(place) for name, place in names.items()}
    eyes = eyes_of(places["clip"], places["dino"])
    seen = fingerprint(eyes.clip.model, eyes.dino.model)

    base = load_base(where)
    start = time.time() - psutil.Process(os.getpid()).create_time()
    known = base.identity
    digest = f"{known.weights or base.fingerprint}-{fingerprint(base.vae)[:8]}"
    resolution = base.unet.config.sample_size * 2 ** (len(base.vae.config.block_out_channels) - 1)
    device = "cuda" if gpu_count() else "cpu"
    speeds = cost.timed(base, device, config.threads, start)
    eyes_of.cache_clear()  # the cells need the memory
    ground = Ground(absolute(where), digest, places["clip"], places["dino"], seen, resolution)
    return ground, speeds


def absolute(place: str) -> str:
    """A place on this machine from the root, where there is one; a hub id as it is."""
    return str(Path(place).resolve()) if Path(place).exists() else place


def account(plan: Plan, missing: dict[str, Cell], rows: dict[str, Row], speeds: Any) -> list[str]:
    """The plan in lines: cells, hours, disk, and cells of other code."""
    from studies.reproduce.forecast import forecast

    cells = plan.unique()
    there = [rows[key] for key in cells if key in rows]
    lines = [
        f"plan: {', '.join(plan.config.tables)}: {len(plan.subjects)} subjects, "
        f"{len(cells)} cells, {len(there)} of them there"
    ]
    if plan.ground.is_toybox and plan.config.subjects:
        lines.append("plan: this is the toybox base, which cannot draw real photos: name --base")
    others = sum(tables.is_of_other_code(row) for row in there)
    if others:
        lines.append(f"plan: {others} of those were made by other code; --fresh runs them again")
    if missing:
        lines += forecast(plan, list(missing.values()), list(rows.values()), speeds, gpu_count())
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
