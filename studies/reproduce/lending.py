"""A concept that one cell trained and kept is lent to cells that only draw otherwise.

So four strengths of guidance cost one training and four drawings. It needs `--keep concepts`. A
concept of other code than this is not lent. The borrower's row has the lender's training times.
"""

import json
import shutil
from pathlib import Path

from eqdiff.files import replacing
from studies.reproduce.cell import CONCEPT, LENT, Cell, Row
from studies.reproduce.code import code_mark
from studies.reproduce.store import Store


def lend(store: Store, cell: Cell, row: Row) -> None:
    """Notes that a finished cell's concept can be had, if it was kept."""
    if not store.kept_place(cell.key, "concepts").is_file():
        return
    note = _note(store, cell)
    note.parent.mkdir(parents=True, exist_ok=True)
    facts = {"key": cell.key}
    facts |= {name: row[name]["train"] for name in ("seconds", "cpu_seconds") if name in row}
    with replacing(note, shared=True) as beside:
        beside.write_text(json.dumps(facts), encoding="utf-8")


def borrow(store: Store, cell: Cell, folder: Path) -> None:
    """Puts a concept of the same training into a cell's folder, if one can be had."""
    note = _note(store, cell)
    if not note.is_file():
        return
    facts = json.loads(note.read_text(encoding="utf-8"))
    kept = store.kept_place(facts["key"], "concepts")
    if kept.is_file():
        target = folder / CONCEPT
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, target)
        (folder / LENT).write_text(json.dumps(facts), encoding="utf-8")


def _note(store: Store, cell: Cell) -> Path:
    return store.work / "trained" / f"{cell.training_key}-{code_mark()}.json"
