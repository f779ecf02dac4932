"""The tabs Compare and Look inside: several concepts on the same seeds; a concept's insides."""

import html
import json
import math
from pathlib import Path
from typing import Any

import gradio as gr

from app import workplace
from app.commands import compare_commands, inside_commands
from app.jobs import Job, Queue
from app.looks import NONE, changed, choices, escaped, if_changed, job_html, newest, told
from eqdiff.errors import require
from eqdiff.evaluation.samples import METRICS

FIRST = "Nothing is compared yet. Choose concepts or checkpoints above, then press Compare."
LOOK = "Nothing is looked at yet. Choose a concept above, then press Look inside."


class Compare:
    """The tab Compare. `shown` are the parts that the page's clock moves."""

    def __init__(self, queue: Queue, base: str) -> None:
        self.queue = queue
        self.base = base
        known = list(workplace.concepts())
        self.concepts = gr.CheckboxGroup(known, label="Concepts", elem_id="compared")
        self.prompts = gr.Textbox(
            value="a photo of a {} on the beach",
            label="Prompts, a line each",
            lines=2,
            elem_id="compare-prompts",
        )
        self.number = gr.Number(1, label="Pictures a prompt", precision=0)
        go = gr.Button("Compare", variant="primary", elem_id="compare")
        self.said = gr.HTML(elem_id="compare-said")
        job = gr.HTML(elem_id="compare-job")
        marks = gr.HTML(elem_id="compare-marks")
        page = gr.HTML(elem_id="compare-page")
        self.shown = [job, marks, page, self.concepts]
        form = [self.concepts, self.prompts, self.number]
        go.click(self.compare, form, self.said, api_visibility="private")

    @told(0)
    def compare(self, names: list[str], prompts: str, number: float) -> tuple[str]:
        chosen = {name: workplace.concept(name) for name in names or ()}
        lines = [line.strip() for line in (prompts or "").splitlines() if line.strip()]
        taken = {job.target for job in self.queue.jobs}
        into = workplace.new_folder(workplace.COMPARED, "1", taken)
        commands = compare_commands(chosen, lines, into, int(number or 1), self.base or None)
        count = "1 concept" if len(chosen) == 1 else f"{len(chosen)} concepts"
        job = self.queue.add("compare", count, commands, into)
        return (f"job {job.number} is in the queue",)

    def now(self, seen: dict[str, Any]) -> list[Any]:
        """What `shown` shows now; `seen` holds what this browser has been shown."""
        job = newest(self.queue, "compare")
        known = list(workplace.concepts())
        concepts: Any = gr.skip()
        if changed(seen, "compared", known):
            concepts = gr.CheckboxGroup(choices=known)
        over = job is not None and job.over
        anew = changed(seen, "comparison", (job and job.number, over)) and over
        return [
            if_changed(seen, "compare", job_html(job, FIRST if known else NONE)),
            marks_html(job) if anew and job else gr.skip(),
            framed(job.target / "gallery.html") if anew and job else gr.skip(),
            concepts,
        ]


class Inside:
    """The tab Look inside. `shown` are the parts that the page's clock moves."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.concept = gr.Dropdown([], value=None, label="Concept", elem_id="inside-concept")
        self.prompt = gr.Textbox("a photo of a {} on the beach", label="Prompt of the bands")
        go = gr.Button("Look inside", variant="primary", elem_id="look")
        self.said = gr.HTML(elem_id="inside-said")
        job = gr.HTML(elem_id="inside-job")
        figures = gr.HTML(elem_id="inside-figures")
        gate = gr.Image(label="The gate M_f over each photo, at four timesteps", interactive=False)
        bands = gr.Image(
            label="A photo's bands, and what S_ori, S_LF and S_HF draw", interactive=False
        )
        self.shown = [job, figures, gate, bands, self.concept]
        go.click(self.look, [self.concept, self.prompt], self.said, api_visibility="private")

    @told(0)
    def look(self, name: str | None, prompt: str) -> tuple[str]:
        require(name, "no concept yet; teach one first")
        path = workplace.concept(name or "")
        taken = {job.target for job in self.queue.jobs}
        into = workplace.new_folder(workplace.LOOKS, "1", taken)
        commands = inside_commands(path, into, prompt)
        job = self.queue.add("inside", f"inside {name}", commands, into)
        return (f"job {job.number} is in the queue",)

    def now(self, seen: dict[str, Any]) -> list[Any]:
        """What `shown` shows now; `seen` holds what this browser has been shown."""
        job = newest(self.queue, "inside")
        known = finished()
        pictures = [job.target / name if job else Path() for name in ("gate.png", "bands.png")]
        there = [str(path) if path.is_file() else None for path in pictures]
        settled = job is not None and job.over
        return [
            if_changed(seen, "inside", job_html(job, LOOK if known else NONE)),
            if_changed(seen, "figures", figures_html(job) if job else ""),
            *[
                path if settled and path and changed(seen, f"look {number}", path) else gr.skip()
                for number, path in enumerate(there)
            ],
            choices(seen, "insides", known),
        ]


def marks_html(job: Job) -> str:
    """Identity and text of each column, the best by their product marked."""
    rows = []
    for folder in sorted(path.parent for path in job.target.glob(f"*/{METRICS}")):
        overall = json.loads((folder / METRICS).read_text(encoding="utf-8"))["overall"]
        rows.append((folder.name, overall["dino_i"]["mean"], overall["clip_t_cos"]["mean"]))
    if not rows:
        return ""
    best = max(range(len(rows)), key=lambda i: max(rows[i][1], 0) * max(rows[i][2], 0))
    lines = [
        f"<tr{' class=best' if i == best else ''}><td>{escaped(name)}{' ★ best' * (i == best)}</td>"
        f"<td>{identity:.3f}</td><td>{text:.3f}</td></tr>"
        for i, (name, identity, text) in enumerate(rows)
    ]
    head = "<tr><th>concept</th><th>identity (DINO-I)</th><th>text (CLIP-T)</th></tr>"
    return f"<table>{head}{''.join(lines)}</table>"


def figures_html(job: Job) -> str:
    """The gate's figures at the start and at the end."""
    path = job.target / "gate.json"
    if not (job.over and path.is_file()):
        return ""
    figures = json.loads(path.read_text(encoding="utf-8"))
    rows = ""
    for name in figures["start"]:
        cells = (_figure(figures[end][name]) for end in ("start", "end"))
        rows += f"<tr><td>{escaped(name)}</td><td>{'</td><td>'.join(cells)}</td></tr>"
    return f"<table><tr><th></th><th>start</th><th>end</th></tr>{rows}</table>"


def _figure(value: float) -> str:
    """A figure; one that is none, such as the gate outside a mask that covers all, is a dash."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


def framed(page: Path) -> str:
    """A gallery in a frame of its own, which can neither reach this page nor the server."""
    if not page.is_file():
        return ""
    text = html.escape(page.read_text(encoding="utf-8"))
    return f'<iframe title="the comparison" sandbox="allow-scripts" srcdoc="{text}"></iframe>'


def finished() -> list[str]:
    """The names of the concepts that lie beside their config.json: no checkpoints."""
    return [name for name, path in workplace.concepts().items() if is_finished(path)]


def is_finished(concept: Path) -> bool:
    return (concept.parent / "config.json").is_file()
