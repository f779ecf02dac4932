"""A cell that costs nothing, for the tests of engines: figures from its key, and a mark at its end.

COUNTS names a folder; each run adds a line to <subject>-<seed>.txt there when it ends.
"""

import os
import random
import time
from pathlib import Path

from studies.reproduce.attempts import CellFailed
from studies.reproduce.cell import Cell, Row

COUNTS = "STUB_COUNTS"
SECONDS = "STUB_SECONDS"  # that a cell takes
METRICS = ("clip_t", "clip_t_background", "clip_i", "dino_i", "max_cosine", "max_cosine_clip")


def a_cell(number: int, train: tuple[str, ...] = (), subject: str = "s") -> Cell:
    """A cell unlike those of other numbers."""
    return Cell(
        base="base",
        base_digest="b",
        clip="clip",
        dino="dino",
        eyes_digest="e",
        subject=subject,
        subject_digest=subject,
        class_word="mug",
        photos="photos",
        train=("--preset", "toybox", *train),
        draw=(),
        seed=number,
        prompts=(("a {}", "plain"), ("a drawing of a {}", "style")),
        images=1,
        threads=1,
    )


def run(cell: Cell, folder: Path) -> Row:
    """A row whose figures are the key's own. The subject "fails" always fails."""
    time.sleep(float(os.environ.get(SECONDS, "0")))
    if cell.subject == "fails":
        raise CellFailed("error: it never works")
    if COUNTS in os.environ:
        with (Path(os.environ[COUNTS]) / f"{cell.subject}-{cell.seed}.txt").open("a") as file:
            file.write("end\n")

    images = folder / "samples" / "images"
    images.mkdir(parents=True)
    (images / "0.png").write_bytes(cell.key.encode())
    draws = random.Random(cell.key)
    rows = [
        {"prompt": text, "kind": kind, **{name: draws.random() for name in METRICS}}
        for text, kind in cell.prompts
    ]
    seconds = {"train": time.time(), "draw": 0.0, "measure": 0.0}
    facts = {"subject": cell.subject, "seed": cell.seed, "train": list(cell.train)}
    return {"key": cell.key, "code": "c", **facts, "seconds": seconds, "rows": rows, "pictures": {}}
