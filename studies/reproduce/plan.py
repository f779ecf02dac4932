"""The plan: which cells the tables need, and what they will cost."""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from eqdiff.errors import UserError
from eqdiff.settings.places import ASSETS, default_preset
from eqdiff.settings.presets import parse
from eqdiff.settings.prompts import read_prompts
from eqdiff.settings.sample import SampleConfig
from eqdiff.settings.train import TrainConfig
from studies.reproduce.cell import Cell
from studies.reproduce.methods import METHODS, TABLES
from studies.reproduce.settings import ReproduceConfig
from studies.reproduce.subjects import Subject

MOST_PROCESSES = 4  # of the toybox, unless more are asked for
STYLES = 22  # stylized prompts, as many as the paper has
SMOKE_TRAINING = (
    *("--max_train_steps", "3", "--reference_pool", "4"),
    *("--num_class_images", "2", "--class_inference_steps", "2"),
    *("--num_inference_steps", "2"),  # the recipe's, in which the drift's pictures are drawn
)
SMOKE_DRAWING = ("--num_inference_steps", "2")

Place = tuple[str, str, int]  # method, subject, seed


@dataclasses.dataclass(frozen=True)
class Ground:
    """What all cells stand on: base, CLIP and DINO, where they lie and what they are.

    resolution: side of the base's own pictures [pixels].
    """

    base: str
    base_digest: str
    clip: str
    dino: str
    eyes_digest: str
    resolution: int

    @property
    def is_toybox(self) -> bool:
        return default_preset(self.base) == "toybox"


@dataclasses.dataclass(frozen=True)
class Plan:
    """cells: by their places in the tables. Equal cells are run once, see `unique`."""

    config: ReproduceConfig
    ground: Ground
    subjects: tuple[Subject, ...]
    cells: dict[Place, Cell]

    def unique(self) -> dict[str, Cell]:
        """Key -> cell; those of a subject follow one another, so that early ones compare."""
        return {cell.key: cell for cell in self.cells.values()}

    def names(self) -> dict[str, str]:
        """Key -> a cell in words."""
        named: dict[str, str] = {}
        for (method, subject, seed), cell in self.cells.items():
            named.setdefault(cell.key, f"{method}, {subject}, seed {seed}")
        return named

    def processes(self, gpus: int) -> int:
        """How many cells run at a time here: one a GPU; of the toybox on CPUs a few."""
        usual = gpus or 1
        if self.ground.is_toybox and not gpus:
            usual = min(MOST_PROCESSES, (os.cpu_count() or 1) // self.config.threads)
        return self.config.processes or max(1, usual)

    def methods_of(self, table: str) -> list[str]:
        """The methods of a table that are asked for, and the one that it compares them with."""
        methods = TABLES[table].methods
        chosen = {*methods} & {*self.config.methods} if self.config.methods else {*methods}
        needed = {*chosen, TABLES[table].against} if chosen else set()
        return [name for name in methods if name in needed]


def require_flags(config: ReproduceConfig) -> None:
    """Raises UserError if --train_flags are no flags of train_eqdiff.py."""
    try:
        words = shlex.split(config.train_flags)
    except ValueError as error:
        raise UserError(
            f"--train_flags {config.train_flags!r}: {error}; close the quotes"
        ) from None
    parse(TrainConfig, ["--preset", "paper", *words])


def made(config: ReproduceConfig, ground: Ground, subjects: Sequence[Subject]) -> Plan:
    """The plan of what is asked for."""
    rated = (config.rating_sheet,) if config.rating_sheet else ()
    tables = dict.fromkeys((*config.tables, *config.verify, *rated))
    plan = Plan(config, ground, tuple(subjects), {})
    methods = dict.fromkeys(name for table in tables for name in plan.methods_of(table))
    cells = {
        (name, subject.name, seed): cell_of(config, ground, name, subject, seed)
        for subject in subjects
        for seed in range(config.seeds)
        for name in methods
    }
    return dataclasses.replace(plan, cells=cells)


def opening(preset: str, resolution: int) -> list[str]:
    """What the training of every cell says first."""
    return ["--preset", preset, "--resolution", str(resolution)]


def cell_of(
    config: ReproduceConfig, ground: Ground, method: str, subject: Subject, seed: int
) -> Cell:
    """The cell of a method and subject."""
    row = METHODS[method]
    train = opening(default_preset(ground.base), ground.resolution)
    train += [*row.flags(ground.is_toybox), *shlex.split(config.train_flags)]
    draw = list(row.draw)
    if config.smoke:
        train += SMOKE_TRAINING
        draw += SMOKE_DRAWING

    return Cell(
        base=ground.base,
        base_digest=ground.base_digest,
        clip=ground.clip,
        dino=ground.dino,
        eyes_digest=ground.eyes_digest,
        subject=subject.name,
        subject_digest=subject.digest,
        class_word=subject.class_word,
        photos=str(subject.folder.resolve()),
        train=tuple(train),
        draw=tuple(draw),
        seed=seed,
        prompts=prompts_of(config, ground, subject),
        images=config.num_images_per_prompt,
        threads=config.threads,
        precision=config.precision,
    )


def prompts_of(
    config: ReproduceConfig, ground: Ground, subject: Subject
) -> tuple[tuple[str, str], ...]:
    """(text, kind) pairs: on the toybox its 8 and 8, or 10 and 14, else 55 plain, 22 stylized ones.

    A subject that has prompts of its own gets those.
    """
    if subject.prompts:
        first = {kind: (text, kind) for text, kind in reversed(subject.prompts)}
        return tuple(first.values()) if config.smoke else subject.prompts
    if ground.is_toybox:
        width = "_wide" if config.wide_prompts else ""
        plain = _listed(f"toybox{width}_plain")
        style = _listed(f"toybox{width}_style")
    else:
        plain = _listed("live" if subject.live else "object")
        style = _listed("style")[:STYLES]
    most = 1 if config.smoke else None
    return tuple(
        (text, kind)
        for kind, texts in (("plain", plain), ("style", style))
        for text in texts[:most]
    )


def _listed(name: str) -> tuple[str, ...]:
    return read_prompts(ASSETS / "prompts" / f"{name}.txt")


def settings_of(cell: Cell) -> tuple[TrainConfig, SampleConfig]:
    """The settings of a cell's training and drawing. Raises UserError if its flags are bad."""
    return parse(TrainConfig, list(cell.train)), parse(SampleConfig, list(cell.draw))


def default_folder(ground: Ground, smoke: bool) -> Path:
    """Where cells and tables go: by the base's name, those of --smoke apart."""
    label = "toybox" if ground.is_toybox else Path(ground.base).name or "base"
    return Path("outputs") / "reproduce" / (f"{label}-smoke" if smoke else label)
