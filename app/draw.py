"""The tab Draw: a concept, prompts, pictures as they come, and their settings to use again."""

from pathlib import Path
from typing import Any

import gradio as gr

from app import workplace
from app.commands import draw_command
from app.jobs import Queue
from app.looks import (
    NONE,
    card_html,
    changed,
    choices,
    drawn_so_far,
    if_changed,
    job_html,
    last_preview,
    newest,
    rows_of,
    told,
)
from eqdiff.concept.checks import read_facts
from eqdiff.errors import require
from eqdiff.settings.places import ASSETS
from eqdiff.settings.prompts import read_prompts

# what a row of the manifest calls the fields of the form
AGAIN = {"prompt": "prompts", "negative_prompt": "negative_prompt", "run_seed": "seed"}
AGAIN |= {"steps": "num_inference_steps", "guidance": "guidance_scale", "rra": "rra"}
AGAIN |= {"height": "height", "width": "width", "reference": "reference"}

FIRST = "Nothing is drawn yet. Write a prompt above, then press Draw."
USUAL = ("num_inference_steps", "guidance_scale", "height", "width")  # 0: the concept's


class Draw:
    """The tab. `shown` are the parts that the page's clock moves."""

    def __init__(self, queue: Queue, base: str) -> None:
        self.queue = queue
        self.base = base
        with gr.Row():
            with gr.Column():
                self.concept = gr.Dropdown([], value=None, label="Concept", elem_id="concept")
                self.card = gr.HTML()
                self.file = gr.DownloadButton("Download the concept", elem_id="download")
            self.face = gr.Image(label="Its newest preview", interactive=False, height=260)
        self.fields = self._form()
        go = gr.Button("Draw", variant="primary", elem_id="draw")
        self.said = gr.HTML(elem_id="draw-said")
        job = gr.HTML(elem_id="draw-job")
        self.pictures = gr.Gallery(
            label="Pictures", columns=4, elem_id="drawn", buttons=["download", "fullscreen"]
        )
        self.row = gr.JSON(label="How the chosen picture was drawn", elem_id="row")
        again = gr.Button("Use these again", elem_id="use")
        self.shown = [job, self.pictures, self.concept]
        self._wire(go, again)

    def _form(self) -> dict[str, Any]:
        styles = read_prompts(ASSETS / "prompts" / "toybox_style.txt")
        fields: dict[str, Any] = {}
        fields["prompts"] = gr.Textbox(
            value="a photo of a {} on the beach",
            label="Prompts, a line each; {} is the subject",
            lines=2,
            elem_id="prompts",
        )
        self.chips = gr.Radio(list(styles), label="Or take one of these", elem_id="chips")
        fields["negative_prompt"] = gr.Textbox(label="Not this", elem_id="negative")
        with gr.Row():
            number = dict(precision=0)
            fields["seed"] = gr.Number(0, label="Seed", elem_id="draw-seed", **number)
            fields["num_images_per_prompt"] = gr.Number(1, label="Pictures a prompt", **number)
            fields["num_inference_steps"] = gr.Number(
                0, label="Steps (0: the concept's)", elem_id="draw-steps", **number
            )
            fields["guidance_scale"] = gr.Number(0, label="Guidance (0: the concept's)")
        with gr.Row():
            fields["height"] = gr.Number(0, label="Height (0: as trained)", **number)
            fields["width"] = gr.Number(0, label="Width (0: as trained)", **number)
            fields["reference"] = gr.Dropdown([], label="Photo to attend to", value=None)
            fields["rra"] = gr.Checkbox(True, label="Attend to it (RRA)")
        return fields

    def _wire(self, go: gr.Button, again: gr.Button) -> None:
        about = [self.said, self.card, self.file, self.face, self.fields["reference"]]
        self.concept.change(self.describe, self.concept, about, api_visibility="private")
        self.chips.input(
            lambda text: text, self.chips, self.fields["prompts"], api_visibility="private"
        )
        form = [self.concept, *self.fields.values()]
        go.click(self.draw, form, self.said, api_visibility="private")
        self.pictures.select(self.explain, None, [self.said, self.row], api_visibility="private")
        fields = [self.said, *self.fields.values()]
        again.click(self.use_again, self.row, fields, api_visibility="private")

    @told(4)
    def describe(self, name: str | None) -> tuple[Any, ...]:
        if not name:
            return ("", *[gr.skip()] * 4)
        path = workplace.concept(name)
        photos = list(read_facts(path).photos)
        listed = gr.Dropdown(choices=photos, value=None)
        return "", card_html(path), str(path), last_preview(workplace.run_of(path)), listed

    @told(0)
    def draw(self, name: str | None, prompts: str, *values: Any) -> tuple[str]:
        require(name, "no concept yet; teach one first")
        path = workplace.concept(name or "")
        settings = dict(zip(list(self.fields)[1:], values, strict=True))
        settings |= {name: settings[name] or None for name in USUAL}
        lines = [line.strip() for line in (prompts or "").splitlines() if line.strip()]
        taken = {job.target for job in self.queue.jobs}
        output = workplace.new_folder(workplace.run_of(path) / "drawn", "1", taken)
        words = draw_command(path, lines, output, settings, self.base or None)
        count = "1 prompt" if len(lines) == 1 else f"{len(lines)} prompts"
        job = self.queue.add("draw", f"{count} by {name}", [words], output)
        return (f"job {job.number} is in the queue",)

    @told(1)
    def explain(self, event: gr.SelectData) -> tuple[Any, ...]:
        job = newest(self.queue, "draw")
        rows = rows_of(job.target) if job else ()
        require(event.index < len(rows), "it is being drawn; its settings come with the last one")
        return "", dict(rows[event.index])

    @told(10)
    def use_again(self, row: dict[str, Any] | None) -> tuple[Any, ...]:
        require(row, "choose a picture first")
        given = {AGAIN[name]: value for name, value in (row or {}).items() if name in AGAIN}
        given["num_images_per_prompt"] = int((row or {}).get("number") or 0) + 1
        return "its settings are in the form", *[given.get(name) for name in self.fields]

    def now(self, seen: dict[str, Any]) -> list[Any]:
        """What `shown` shows now; `seen` holds what this browser has been shown."""
        job = newest(self.queue, "draw")
        files = drawn_so_far(job.target) if job else []
        known = list(workplace.concepts())
        cells: Any = gr.skip()
        if files and changed(seen, "drawn", [str(path) for path in files]):
            cells = [(readable(path), path.stem) for path in files]
        empty = FIRST if known else NONE
        return [
            if_changed(seen, "draw", job_html(job, empty)),
            cells,
            choices(seen, "concepts", known),
        ]


def readable(path: Path) -> str:
    """The picture's path. A picture that moves into place just now is looked for there."""
    moved = path.parent.parent / "images" / path.name
    return str(moved if not path.exists() and moved.exists() else path)
