"""Where cells are kept, and how several processes and machines share them.

cells.jsonl has a line of JSON a cell. One process at a time writes it: it takes all rows that are
finished, and puts a whole new file in the place of the old one. kept/<key>/ has what is kept of a
cell beside its row. work/ has the rest, which is made again if it is gone.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from eqdiff.errors import UserError
from eqdiff.files import replacing
from studies.reproduce.cell import CONCEPT, IMAGES, Row
from studies.reproduce.claims import Claims

TRIES = 3  # of a cell that fails
KILLS = 8  # of a cell whose process is killed, by want of memory say
# Of a row, and no part of its result. Its key says what was trained and drawn; the flags are those
# of one of the methods that come to the same.
CHANGES = ("seal", "seconds", "cpu_seconds", "device", "versions", "train", "draw")
PLACES = {"pictures": IMAGES, "concepts": CONCEPT}


class Store:
    """The cells of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()  # cells run in another working directory
        self.file = self.folder / "cells.jsonl"
        self.work = self.folder / "work"
        self._known: tuple[tuple[int, int], set[str]] = ((0, 0), set())
        self.claims = Claims(self.work / "claims")

    # -- rows --------------------------------------------------------------------------------------

    def rows(self) -> dict[str, Row]:
        """The gathered rows by key, in the order of the keys.

        A torn last line counts as not written. Raises UserError if any other line is not JSON.
        """
        if not self.file.is_file():
            return {}
        rows = []
        lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                rows.append((row["key"], row))
            except (ValueError, KeyError, TypeError):
                if number < len(lines):
                    problem = f"{self.file}, line {number}: no row of a cell; remove that line"
                    raise UserError(problem) from None
        return dict(sorted(rows))

    def save(self, row: Row) -> None:
        """Writes the row of a finished cell, to be gathered."""
        with replacing(self._row_file(row["key"]), durable=True, shared=True) as beside:
            beside.write_text(json.dumps(sealed(row)), encoding="utf-8")
        self._tries_file(row["key"]).unlink(missing_ok=True)

    def gather_new(self) -> None:
        """`gather`, if there is anything to gather: it costs one look into a folder."""
        if next((self.work / "rows").glob("*.json"), None):
            self.gather()

    def gather(self) -> dict[str, Row]:
        """Puts the finished rows into cells.jsonl, where a new one replaces one of its key.

        All rows. Raises UserError if the file cannot be written.
        """
        with self.claims.in_turn("gather"):
            rows = self.rows()
            files = sorted((self.work / "rows").glob("*.json"))
            if not files:
                return rows
            rows |= {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
            self._write(rows)
            for file in files:
                file.unlink(missing_ok=True)
            return dict(sorted(rows.items()))

    def forget(self, keys: Iterable[str]) -> None:
        """Removes cells: their rows, what is kept of them, their failures."""
        with self.claims.in_turn("gather"):
            rows = self.rows()
            for key in keys:
                rows.pop(key, None)
                self._row_file(key).unlink(missing_ok=True)
                self._tries_file(key).unlink(missing_ok=True)
                shutil.rmtree(self.kept(key), ignore_errors=True)
            self._write(rows)

    def _write(self, rows: dict[str, Row]) -> None:
        lines = "".join(json.dumps(rows[key]) + "\n" for key in sorted(rows))
        with replacing(self.file, durable=True) as beside:
            beside.write_text(lines, encoding="utf-8")

    # -- a cell's state ----------------------------------------------------------------------------

    def done(self, key: str) -> bool:
        """Whether a cell has a row."""
        return self._row_file(key).is_file() or key in self._gathered()

    def _gathered(self) -> set[str]:
        """The keys in cells.jsonl, which is read again when it has changed."""
        try:
            state = self.file.stat()
        except OSError:
            return set()
        stamp = (state.st_mtime_ns, state.st_ino)
        if stamp != self._known[0]:
            self._known = (stamp, set(self.rows()))
        return self._known[1]

    def failures(self, key: str) -> list[str]:
        """The last line of each try of a cell that failed."""
        return self._tries(key)["failed"]

    def given_up(self, key: str) -> str | None:
        """Why a cell is not tried again; None: it is."""
        tries = self._tries(key)
        if len(tries["failed"]) >= TRIES:
            return tries["failed"][-1]
        if tries["begun"] >= KILLS:
            return f"its process was killed {KILLS} times; more memory may help"
        return None

    def begin(self, key: str) -> None:
        """Notes that a try begins: one that never ends was killed."""
        tries = self._tries(key)
        self._note(key, {**tries, "begun": tries["begun"] + 1})

    def fail(self, key: str, line: str) -> None:
        """Notes that the try that began has failed, with its last line."""
        tries = self._tries(key)
        self._note(key, {"begun": tries["begun"] - 1, "failed": [*tries["failed"], line]})

    def pardon(self, keys: Iterable[str]) -> None:
        """Forgets former failures."""
        for key in keys:
            self._tries_file(key).unlink(missing_ok=True)

    def _tries(self, key: str) -> dict[str, Any]:
        try:
            return json.loads(self._tries_file(key).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"begun": 0, "failed": []}

    def _note(self, key: str, tries: dict[str, Any]) -> None:
        with replacing(self._tries_file(key), shared=True) as beside:
            beside.write_text(json.dumps(tries), encoding="utf-8")

    # -- files -------------------------------------------------------------------------------------

    def kept(self, key: str) -> Path:
        """The folder of what is kept of a cell."""
        return self.folder / "kept" / key

    def kept_place(self, key: str, kind: str) -> Path:
        """Where what is kept of a kind lies, if it was kept."""
        return self.kept(key) / Path(PLACES[kind]).name

    def keep(self, key: str, attempt: Path, kinds: Iterable[str]) -> None:
        """Moves what is to be kept out of the folder in which a cell was run."""
        for kind in kinds:
            source = attempt / PLACES[kind]
            target = self.kept_place(key, kind)
            if source.exists():
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, target)

    def attempt(self, key: str) -> Path:
        """A new folder to run a cell in; those that killed tries of it left are removed."""
        above = self.work / "attempts"
        for left in above.glob(f"{key}-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = above / f"{key}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        return folder

    def discard(self, folder: Path) -> None:
        """Removes the folder in which a cell was run."""
        shutil.rmtree(folder, ignore_errors=True)

    def _row_file(self, key: str) -> Path:
        return self.work / "rows" / f"{key}.json"

    def _tries_file(self, key: str) -> Path:
        return self.work / "tries" / f"{key}.json"

    # -- claims ------------------------------------------------------------------------------------

    def claimed(self, key: str) -> AbstractContextManager[bool]:
        """Whether a cell is this process's own within the block; False if another has it."""
        return self.claims.claimed(key)

    def require_exclusive(self) -> None:
        """Raises UserError if a file can be created exclusively twice on this disk.

        Then every machine would run every cell.
        """
        probe = self.work / f"probe-{os.getpid()}-{secrets.token_hex(4)}"
        remedy = "name a folder on another disk with --output_dir, or use --engine ray"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            twice = _created(probe) and _created(probe)
        except OSError as error:
            reason = f"claims cannot be made there ({error.strerror})"
            raise UserError(f"{self.work}: {reason}; {remedy}") from None
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        if twice:
            raise UserError(
                f"{self.work}: this disk creates a file twice that must be created once, so cells "
                f"cannot be shared out there; {remedy}"
            )


def _created(path: Path) -> bool:
    """Whether this call, and no other, created the file."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def seal(row: Row) -> str:
    """A digest of a row's content, so that a changed one is known."""
    content = {name: value for name, value in row.items() if name != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def sealed(row: Row) -> Row:
    """A row with its seal."""
    return {**row, "seal": seal(row)}


def result_of(row: Row) -> Row:
    """What two runs of a cell must agree on: a row without times, machine and flags."""
    return {name: value for name, value in row.items() if name not in CHANGES}
