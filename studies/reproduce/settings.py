"""The settings of `scripts/reproduce.sh`."""

import dataclasses
from typing import Literal

from eqdiff.errors import require
from eqdiff.settings.evaluate import CLIP_MODEL, DINO_MODEL
from eqdiff.settings.options import Role, check_fields, opt
from eqdiff.settings.places import BASE_HELP
from studies.reproduce.methods import METHODS, PAPER_TABLES, TABLES

KINDS = ("pictures", "concepts")  # what of a cell may be kept beside its row
FIRST = Role.FIRST


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """Rebuild the paper's Table 1, Fig. 7 and Fig. 9 from a base and photos."""

    base: str | None = opt(None, BASE_HELP, role=FIRST)
    subjects: str | None = opt(
        None,
        "folder with a folder of photos a subject, as DreamBooth's, or DreamBench++ "
        "(default: subjects of the toybox)",
        role=FIRST,
    )
    clip: str | None = opt(
        None, f"CLIP, folder or hub id (default: {CLIP_MODEL}; on the toybox base its own)"
    )
    dino: str | None = opt(None, f"ViT by DINO, folder or hub id (default: {DINO_MODEL}; likewise)")
    tables: tuple[str, ...] = opt(
        PAPER_TABLES, f"tables to rebuild, of {', '.join(TABLES)}", role=FIRST
    )
    methods: tuple[str, ...] = opt((), "of their methods these alone (default: all)")
    seeds: int = opt(1, "trainings of each method and subject", 1, 1000)
    num_subjects: int | None = opt(None, "the first of the subjects (default: all)", 1, 10_000)
    num_images_per_prompt: int = opt(1, "pictures a prompt", 1, 1000)
    toybox_table: Literal["test", "dev"] = opt(
        "test", "whose subjects the toybox's are: settings are chosen on dev"
    )
    wide_prompts: bool = opt(
        False, "on the toybox all 10 places and 14 stylized prompts, instead of 8 and 8"
    )
    train_flags: str = opt("", "flags of train_eqdiff.py for every cell, in quotes")

    smoke: bool = opt(
        False, "one subject, 3 steps, 2 prompts through every table: minutes", role=FIRST
    )
    plan: bool = opt(False, "print the plan and stop", role=FIRST)
    approve_masks: bool = opt(False, "go on with masks that were made; their sheets are named")
    fresh: bool = opt(False, "run again what is there")
    verify: tuple[str, ...] = opt(
        (), "tables to verify: rows and kept pictures, and some cells run again", role=FIRST
    )
    verify_cells: int = opt(3, "cells of each verified table that are run again", 0, 1000)

    rating_sheet: str | None = opt(
        None, "a table: write a sheet on which people rate its pictures, in blind pairs, and stop"
    )
    rating_pairs: int = opt(60, "pairs of the sheet at most", 1, 10_000)
    rating_seed: int = opt(0, "draws the pairs, their order and their sides", 0, 2**31)

    engine: Literal["local", "ray"] = opt("local", "who runs the cells")
    processes: int | None = opt(
        None,
        "cells at a time, engine local (default: one a GPU; on CPUs one, of the toybox a few)",
        1,
        1000,
    )
    threads: int = opt(1, "CPU threads of a cell: its figures may depend on them", 1, 1000)
    precision: Literal["no", "bf16", "fp16"] | None = opt(
        None, "of a cell: its figures may depend on it (default: bf16 on GPUs that have it)"
    )
    address: str | None = opt(None, "a Ray cluster's, or 'auto' (default: Ray starts its own)")
    gpus_per_cell: float = opt(
        1.0, "GPUs that Ray gives a cell, where the cluster has any; 0.5: two share one", 0, 64
    )

    keep: tuple[str, ...] = opt(("pictures",), f"kept of a cell, of {', '.join(KINDS)}")
    drop: tuple[str, ...] = opt((), "and not kept of these")
    output_dir: str | None = opt(None, "where cells and tables go (default: outputs/reproduce/...)")

    def __post_init__(self) -> None:
        check_fields(self)
        for flag in ("tables", "verify"):
            _require_known(flag, getattr(self, flag), TABLES)
        _require_known("rating_sheet", (self.rating_sheet,) if self.rating_sheet else (), TABLES)
        _require_known("methods", self.methods, METHODS)
        for flag in ("keep", "drop"):
            _require_known(flag, getattr(self, flag), KINDS)
        remedy = "add --engine ray"
        require(self.engine == "ray" or not self.address, f"--address {self.address}: {remedy}")

    @property
    def kept(self) -> tuple[str, ...]:
        """What of a cell is kept beside its row."""
        return tuple(kind for kind in KINDS if kind in self.keep and kind not in self.drop)


def _require_known(flag: str, names: tuple[str, ...], known: object) -> None:
    """Raises UserError if a flag names what there is not."""
    for name in names:
        require(name in known, f"--{flag} {name!r}: must be one of {', '.join(known)}")
