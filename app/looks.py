"""What the page shows of jobs and concepts. Text of strangers is escaped here, and only here."""

import json
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from app.jobs import Job, Queue, shown
from app.workplace import as_file, photo_and_mask, photo_names, run_of
from eqdiff.data.sheets import overlay
from eqdiff.errors import UserError
from eqdiff.gallery.found import find_run
from eqdiff.sampling.folder import DRAWING
from eqdiff.wording import clean

LAST_LINES = 8  # of a job's log
STATES = {"waiting": "waits", "running": "runs", "done": "done", "failed": "failed"}
STATES |= {"stopped": "stopped"}
# what to do with a job that is over, by its kind and state; a state alone: for every other kind
NEXT = {("teach", "done"): "It is taught. Draw with it, compare it, or look inside."}
NEXT |= {("teach", "stopped"): "Go on takes it up again at its saved step."}
NEXT |= {("draw", "done"): "Choose a picture to see how it was drawn."}
NEXT |= {"stopped": "The queue below can run it again."}
NONE = "There is no concept yet. Teach one in the tab Teach."
CARD = {"class_word": "class word", "preset": "preset", "max_train_steps": "steps"}
CARD |= {"resolution": "size in pixels", "guidance_scale": "guidance"}


def escaped(text: object) -> str:
    return clean(text, "html")


def changed(seen: dict[str, Any], name: str, value: Any) -> bool:
    """Whether a browser has not been shown this value yet; it has now."""
    is_new = seen.get(name) != value
    seen[name] = value
    return is_new


def if_changed(seen: dict[str, Any], name: str, value: Any) -> Any:
    """The value, or nothing to do if the browser shows it already."""
    return value if changed(seen, name, value) else gr.skip()


def choices(seen: dict[str, Any], name: str, known: Sequence[str]) -> Any:
    """A list's new choices, if a browser has not seen them; at first the newest is chosen."""
    before = seen.get(name)
    if not changed(seen, name, list(known)):
        return gr.skip()
    chosen = {} if before or not known else {"value": known[0]}
    return gr.Dropdown(choices=list(known), **chosen)


def message(text: str) -> str:
    """A line below a form; an error is announced."""
    is_error = text.startswith("error: ")
    role, look = ("alert", "bad") if is_error else ("status", "good")
    return f'<p role="{role}" class="{look}">{escaped(text)}</p>' if text else ""


def told(outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of an action, which returns a message and `outputs` more values.

    A user's mistake becomes the message, the same line as in the terminal; the rest stays.
    """

    def decorate(action: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(action)
        def guarded(*args: Any) -> Any:
            try:
                text, *rest = action(*args)
            except UserError as error:
                text, rest = f"error: {error}", [gr.skip()] * outputs
            return (message(text), *rest) if outputs else message(text)

        return guarded

    return decorate


def job_html(job: Job | None, empty: str) -> str:
    """A job with its bar, its command lines and the end of what it printed.

    empty: what to do first, where no job has run.
    """
    if job is None:
        return f"<p>{escaped(empty)}</p>"
    head = f"job {job.number}, {STATES[job.state]}: {job.title}"
    then = NEXT.get((job.kind, job.state)) or NEXT.get(job.state, "")
    parts = [f"<p><strong>{escaped(head)}</strong></p>", message(job.error), message(then)]
    if job.progress:
        name, share, left = job.progress
        text = f"{name}, {left} to go" if "?" not in left else name
        bar = f'<progress max="1" value="{share:.3f}" aria-label="{escaped(name)}"></progress>'
        parts.append(f"<p>{bar} {escaped(text)}</p>")

    lines = [line for line in job.text.splitlines() if not line.startswith("$ ")][-LAST_LINES:]
    if lines:
        parts.append(f'<pre class="log">{chr(10).join(map(escaped, lines))}</pre>')
    parts.append("<p>The same in the terminal:</p>")
    parts += [f"<pre>{escaped(shown(words))}</pre>" for words in job.commands]
    return "".join(parts)


def queue_html(queue: Queue) -> str:
    """The jobs, the newest first."""
    if not queue.jobs:
        return "<p>The queue is empty.</p>"
    rows = "".join(
        f"<tr><td>{job.number}</td><td>{STATES[job.state]}</td><td>{escaped(job.kind)}</td>"
        f"<td>{escaped(job.title)}</td></tr>"
        for job in reversed(queue.jobs)
    )
    head = "<tr><th>job</th><th>state</th><th>tab</th><th>what</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def newest(queue: Queue, kind: str) -> Job | None:
    """The job of a tab that runs, else its newest."""
    jobs = [job for job in queue.jobs if job.kind == kind]
    running = [job for job in jobs if job.state == "running"]
    return (running or jobs or [None])[-1]


def curve_of(folder: Path) -> pd.DataFrame:
    """Steps and losses of a training so far."""
    rows = []
    path = folder / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            rows.append((int(row["step"]), float(row["loss"])))
        except (ValueError, KeyError, TypeError):  # it is being written
            continue
    # figures even where there is no row: a plot takes its axes from its first table
    return pd.DataFrame(rows, columns=["step", "loss"], dtype=float)


def last_preview(folder: Path) -> str | None:
    grids = sorted(folder.glob("preview/step-*.png"))
    return str(grids[-1]) if grids else None


def masked_photos(folder: Path) -> list[tuple[str, str]]:
    """Each photo under its mask, as a file, with its name."""
    cells = []
    for name in photo_names(folder):
        file, has_mask = masked_photo(folder, name)
        cells.append((file, name if has_mask else f"{name}: no mask yet"))
    return cells


def masked_photo(folder: Path, name: str) -> tuple[str, bool]:
    """A photo under its mask, as a file, and whether it has one."""
    image, mask = photo_and_mask(folder, name)
    if mask is None:
        return as_file(image), False
    return as_file(overlay(image, mask)), True


def drawn_so_far(folder: Path) -> list[Path]:
    """A drawing's pictures, also while they come."""
    coming = sorted((folder / DRAWING).glob("*.png")) if (folder / DRAWING).is_dir() else []
    files = [path for path in coming if path.name != "grid.png"]
    return files or sorted((folder / "images").glob("*.png"))


def rows_of(folder: Path) -> Sequence[dict[str, Any]]:
    """The manifest's rows of a finished drawing, in the order of its pictures."""
    try:
        return find_run(folder).rows
    except (UserError, OSError):
        return ()


def card_html(concept: Path) -> str:
    """What a concept is: class word, steps, photos."""
    try:
        settings = json.loads((run_of(concept) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = {}
    rows = "".join(
        f"<tr><td>{text}</td><td>{escaped(settings[name])}</td></tr>"
        for name, text in CARD.items()
        if name in settings
    )
    return f"<table><tbody>{rows}</tbody></table>"


def pace(concepts: Sequence[Path]) -> float | None:
    """Seconds a step of the newest training here; None if there is none."""
    for concept in concepts:
        path = run_of(concept) / "log.jsonl"
        try:
            row = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
            return float(row["seconds"]) / int(row["step"])
        except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
            continue
    return None
