"""The tab Teach: photos, masks under a brush, a training with its curve and previews."""

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app import workplace
from app.commands import masks_command, resumed, train_command
from app.jobs import Queue
from app.looks import (
    changed,
    curve_of,
    if_changed,
    job_html,
    last_preview,
    masked_photo,
    masked_photos,
    message,
    newest,
    pace,
    told,
)
from eqdiff.errors import require
from eqdiff.settings.places import default_preset, resolve_base
from eqdiff.settings.presets import PRESETS, preset_config
from eqdiff.settings.prompts import short

OWN = "my own photos"
FIRST = "Nothing is taught yet. Choose a subject above, look at its masks, then press Start."
ADD, TAKE = "rgb(255, 0, 80)", "rgb(0, 120, 255)"  # the paint that adds, and the one that takes


class Teach:
    """The tab. `shown` are the parts that the page's clock moves."""

    def __init__(self, queue: Queue, base: str) -> None:
        self.queue = queue
        self.base = base
        self.subject = gr.State("")  # the folder of this browser's photos
        with gr.Row():
            self._photos()
            self._brush()
        self.settings = _settings(base)
        with gr.Row():
            start = gr.Button("Start", variant="primary", elem_id="start")
            stop = gr.Button("Stop and save", elem_id="stop")
            again = gr.Button("Go on", elem_id="again")

        job = gr.HTML(elem_id="teach-job")
        self.next = gr.Button("Draw with it", variant="primary", visible=False, elem_id="next")
        with gr.Row():
            curve = gr.LinePlot(x="step", y="loss", height=280, label="Loss")
            preview = gr.Image(
                label="Newest preview",
                type="filepath",
                elem_id="preview",
                interactive=False,
                height=320,
            )
        self.shown = [job, self.next, curve, preview, self.sheet]
        self._wire(start, stop, again)

    def _photos(self) -> None:
        names = [*workplace.bundled(), OWN]
        with gr.Column():
            self.chosen = gr.Dropdown(names, value=None, label="Subject", elem_id="subject")
            self.files = gr.File(
                file_count="multiple", label="Your photos, 3 to 6 of one thing", elem_id="photos"
            )
            self.word = gr.Textbox(
                label="What it is, in words: yellow mug with purple dots",
                elem_id="word",
                max_length=100,
            )
            self.said = gr.HTML(elem_id="teach-said")
            self.sheet = gr.Gallery(
                label="Photos with their masks", columns=3, height="auto", elem_id="sheet"
            )

    def _brush(self) -> None:
        side = workplace.EDITED_SIDE
        with gr.Column():
            self.photo = gr.Dropdown([], label="Photo under the brush", elem_id="photo")
            self.editor = gr.ImageEditor(
                label="The mask",
                type="numpy",
                image_mode="RGBA",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=8, colors=[ADD, TAKE], color_mode="fixed"),
                eraser=gr.Eraser(default_size=8),
                canvas_size=(side, side),
                elem_id="editor",
            )
            gr.HTML(message("Red paint adds to the mask, blue paint takes away."))
            self.keep = gr.Button("Keep this mask", elem_id="keep")

    def _wire(self, start: gr.Button, stop: gr.Button, again: gr.Button) -> None:
        opening = [self.said, self.subject, self.word, self.photo]
        brush = [self.subject, self.photo]
        self.chosen.select(self.choose, self.chosen, opening, api_visibility="private")
        self.files.upload(self.drop, [self.files, self.word], opening, api_visibility="private")
        # an answer of its own: words are there at once, pictures take a second beside a training
        pictures = [self.sheet, self.editor]
        self.subject.change(opened, self.subject, pictures, api_visibility="private")
        self.photo.select(self.show, brush, [self.said, self.editor], api_visibility="private")
        keeping = [self.said, self.sheet, self.editor]
        self.keep.click(self.keep_mask, [*brush, self.editor], keeping, api_visibility="private")
        fields = [self.subject, self.word, *self.settings.values()]
        preset = self.settings["preset"]
        its_own = [self.settings[name] for name in ("max_train_steps", "learning_rate")]
        preset.select(values_of, preset, its_own, api_visibility="private")
        start.click(self.begin, fields, self.said, api_visibility="private")
        stop.click(self.end, None, self.said, api_visibility="private")
        again.click(self.go_on, None, self.said, api_visibility="private")

    @told(3)
    def choose(self, name: str | None) -> tuple[Any, ...]:
        if name in (None, OWN):
            return ("drop your photos", *[gr.skip()] * 3)
        folder = workplace.take_bundled(name)
        return named(folder, f"{name}: {len(workplace.photo_names(folder))} photos")

    @told(3)
    def drop(self, paths: list[str] | None, noun: str) -> tuple[Any, ...]:
        folder = workplace.take_photos([Path(path) for path in paths or ()])
        self.queue.add("masks", "masks of new photos", [masks_command(folder, noun)], folder)
        return named(folder, "the masks are being made; they appear here")

    @told(1)
    def show(self, folder: str, name: str | None) -> tuple[Any, ...]:
        return "", brushed(Path(folder), name) if folder and name else None

    @told(2)
    def keep_mask(
        self, folder: str, name: str | None, drawn: dict[str, Any] | None
    ) -> tuple[Any, ...]:
        require(folder and name and drawn, "no photo is open; choose a subject first")
        path = workplace.change_mask(Path(folder), name, *painted(drawn))
        sheet = masked_photos(Path(folder))
        return f"kept: masks/{path.name}", sheet, brushed(Path(folder), name)

    @told(0)
    def begin(self, folder: str, noun: str, *values: Any) -> tuple[str]:
        require(folder, "no photos; choose a subject or drop some")
        *known, more = values
        given = dict(zip(list(self.settings)[:-1], known, strict=True))
        taken = {job.target for job in self.queue.jobs}
        name = workplace.slug(short(noun), "subject")
        output = workplace.new_folder(workplace.OUTPUTS, name, taken)
        words = train_command(Path(folder), noun, output, given, more, self.base or None)
        job = self.queue.add("teach", f"{noun} into {output}", [words], output)
        return (f"job {job.number} is in the queue",)

    @told(0)
    def end(self) -> tuple[str]:
        jobs = [job for job in self.queue.jobs if job.kind == "teach" and not job.over]
        require(jobs, "no training runs or waits")
        self.queue.stop(jobs[0].number)
        return ("it saves its step and ends; Go on takes it up again",)

    @told(0)
    def go_on(self) -> tuple[str]:
        jobs = [job for job in self.queue.jobs if job.kind == "teach"]
        halted = bool(jobs) and jobs[-1].over and jobs[-1].state != "done"
        require(halted, "no stopped training to go on with")
        old = jobs[-1]
        words = [word for word in old.commands[0] if not word.startswith("--resume_from")]
        saved = any(old.target.glob("checkpoints/step-*"))
        job = self.queue.again(old.number, [resumed(words) if saved else words])
        place = "the saved step" if saved else "its start: it had saved no step"
        return (f"job {job.number} goes on from {place}",)

    def now(self, folder: str, seen: dict[str, Any]) -> list[Any]:
        """What `shown` shows now; `seen` holds what this browser has been shown."""
        job = newest(self.queue, "teach")
        target = job.target if job else Path()
        preview = last_preview(target) if job else None
        curve = curve_of(target) if job else None
        sheet = gr.skip()
        ready = [j.number for j in self.queue.jobs if j.kind == "masks" and j.over]
        if folder and changed(seen, "masks", ready):
            sheet = masked_photos(Path(folder))
        done = job is not None and job.state == "done"
        then: Any = gr.skip()
        if changed(seen, "taught", done and job.number):
            then = gr.Button(visible=done)
        return [
            if_changed(seen, "teach", job_html(job, FIRST)),
            then,
            curve if curve is not None and changed(seen, "curve", len(curve)) else gr.skip(),
            preview if preview and changed(seen, "preview", preview) else gr.skip(),
            sheet,
        ]


def _settings(base: str) -> dict[str, Any]:
    """The settings that matter, and the rest folded. The last entry is the free text."""
    preset = default_preset(resolve_base(base or None))
    with gr.Row():
        fields: dict[str, Any] = {
            "preset": gr.Dropdown(list(PRESETS), value=preset, label="Preset", elem_id="preset"),
            "max_train_steps": gr.Number(
                values_of(preset)[0], label="Steps", precision=0, minimum=1, elem_id="steps"
            ),
            "learning_rate": gr.Number(values_of(preset)[1], label="Learning rate"),
            "validation_steps": gr.Number(
                100, label="Preview every; 0: never", precision=0, minimum=0,
                elem_id="every",
            ),
            "seed": gr.Number(0, label="Seed", precision=0, minimum=0),
        }  # fmt: skip
    with gr.Accordion("The rest: flags of train_eqdiff.py", open=False):
        fields["more"] = gr.Textbox(
            label="As in the terminal, such as --masking noise --no-rra", elem_id="more"
        )
        gr.HTML(message("Every flag: python train_eqdiff.py --help"))
    gr.HTML(estimate(), elem_id="estimate")
    return fields


def named(folder: Path, text: str) -> tuple[Any, ...]:
    """What says which subject is open: message, folder, class word, names of its photos."""
    names = workplace.photo_names(folder)
    word = workplace.class_word_of(folder) or gr.skip()
    return text, str(folder), word, gr.Dropdown(choices=names, value=names[0])


def opened(folder: str) -> tuple[Any, ...]:
    """What shows a subject that was opened: its sheet, and its first photo under the brush."""
    first = workplace.photo_names(Path(folder))[0]
    return masked_photos(Path(folder)), brushed(Path(folder), first)


def values_of(preset: str) -> tuple[int, float]:
    """A preset's steps and learning rate, which the form shows when it is chosen."""
    config = preset_config(preset)
    return config.max_train_steps, config.learning_rate


def estimate() -> str:
    """What a training takes, by the last one here. Memory is told by the training itself."""
    seconds = pace(list(workplace.concepts().values()))
    if seconds is None:
        text = "No training has ended here yet, so its time is not known."
    else:
        text = f"The last training here took {seconds:.2g} s a step: 100 steps, "
        text += f"{100 * seconds / 60:.2g} minutes."
    return message(f"{text} A training says how much memory it wants before its first step.")


def brushed(folder: Path, name: str) -> dict[str, Any]:
    """A photo under its mask as the editor takes it; there is no paint on it yet.

    The mask is in the background, and paint says what changes: what the editor makes of a layer
    that it was given differs between gradio's versions.
    """
    shown, _ = masked_photo(folder, name)
    return {"background": shown, "layers": [], "composite": shown}


def painted(drawn: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Where there is paint that adds, and where there is paint that takes: bool (h,w) each."""
    layers = [np.asarray(layer) for layer in drawn.get("layers") or ()]
    layers = [layer for layer in layers if layer.ndim == 3 and layer.shape[2] == 4]
    require(layers, "nothing is painted; red adds to the mask, blue takes away")
    there = [layer[..., 3] >= 128 for layer in layers]
    reds = [layer[..., 0] > layer[..., 2] for layer in layers]
    added = [paint & red for paint, red in zip(there, reds, strict=True)]
    taken = [paint & ~red for paint, red in zip(there, reds, strict=True)]
    require(np.any(there), "nothing is painted; red adds to the mask, blue takes away")
    return np.any(np.stack(added), axis=0), np.any(np.stack(taken), axis=0)
