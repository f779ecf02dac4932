"""The queue on disk, so that it outlives the server: outputs/app/queue.json, a row a job."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.jobs import OVER, Job
from eqdiff.errors import UserError, require
from eqdiff.files import replacing
from eqdiff.ours import WRITTEN_BY

LOG = logging.getLogger(__name__)
MOST = 200  # jobs that are kept, the newest
NOT_KEPT = ("process",)  # of a job
PATHS = ("target", "log")


def keep(path: Path, jobs: Sequence[Job]) -> None:
    """Writes the newest jobs. A full disk is a warning: the queue goes on without its file."""
    rows = [_row(job) for job in jobs[-MOST:]]
    text = json.dumps({**WRITTEN_BY, "folder": _place(path), "jobs": rows}, indent=1)
    try:
        with replacing(path) as beside:
            beside.write_text(text + "\n", encoding="utf-8")
    except UserError as error:
        LOG.warning("the queue is not kept for a restart: %s", error)


def read(path: Path) -> list[Job]:
    """The jobs of the last server, their numbers as they were.

    Those that waited wait again. One that ran when the server was killed is stopped. In a folder
    that was copied here all that waited are stopped: a stranger's commands run at a click alone.
    A file that cannot be read is a warning, and no jobs.
    """
    if not path.is_file():
        return []
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        jobs = [_job(row, path.parent.parent) for row in kept["jobs"]]
        is_own = kept["folder"] == _place(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        LOG.warning("%s: not readable, so the queue starts empty (%s)", path, error)
        return []

    for job in jobs:
        if job.state == "running" or not (job.over or is_own):
            job.state = "stopped"
    return jobs


def _place(path: Path) -> list[int]:
    """What tells this folder from a copy of it, whoever made that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = path.parent.stat()
    return [facts.st_dev, facts.st_ino]


def _row(job: Job) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(job))
    row = {name: getattr(job, name) for name in fields if name not in NOT_KEPT}
    return {**row, **{name: row[name].as_posix() for name in PATHS}}


def _job(row: dict[str, Any], outputs: Path) -> Job:
    """A row as a job of ours. Raises UserError or TypeError if it is none.

    outputs: what the page may show lies there.
    """
    job = Job(**{**row, **{name: Path(row[name]) for name in PATHS}})
    for place in (job.target, job.log):
        require(place.resolve().is_relative_to(outputs.resolve()), f"{place} is not in {outputs}")
    texts = [job.kind, job.title, *(word for words in job.commands for word in words)]
    require(all(isinstance(text, str) for text in texts), "a text is none")
    require(isinstance(job.number, int) and all(job.commands), "a number or a command is none")
    require(job.state in (*OVER, "waiting", "running"), "a state is none")
    return job
