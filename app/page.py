"""The whole page: the tabs, the queue below them, and the clock that moves what changes."""

from typing import Any

import gradio as gr

from app.compare import Compare, Inside
from app.draw import Draw
from app.jobs import Queue
from app.looks import if_changed, queue_html, told
from app.teach import Teach

SECONDS = 1.5  # between two looks at the queue
CSS = """
.gradio-container { max-width: 1200px !important; }
.bad { color: #b00020; font-weight: 600; } .good { opacity: .85; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; padding: .5rem;
  background: #8882; }
table td, table th { padding: .15rem .8rem .15rem 0; text-align: left; overflow-wrap: anywhere; }
tr.best { font-weight: bold; } progress { width: 12rem; }
iframe { width: 100%; height: 80vh; border: 1px solid #8885; }
@media (max-width: 600px) { #editor, #sheet { min-width: 0 !important; } }
"""
# fonts of the machine: gradio's themes would ask for them elsewhere
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build(queue: Queue, base: str) -> gr.Blocks:
    """The page. base: what `--pretrained_model_name_or_path` says, "" for the usual one."""
    with gr.Blocks(title="EqDiff", analytics_enabled=False) as page:
        seen = gr.State(dict)
        gr.HTML("<h1>EqDiff: teach a subject, draw it anywhere</h1>")
        with gr.Tab("Teach"):
            teach = Teach(queue, base)
        with gr.Tab("Draw"):
            draw = Draw(queue, base)
        with gr.Tab("Compare"):
            compare = Compare(queue, base)
        with gr.Tab("Look inside"):
            inside = Inside(queue)
        with gr.Accordion("Queue: one job at a time, the same in every browser", open=True):
            table = gr.HTML(elem_id="queue")
            with gr.Row():
                number = gr.Number(0, label="Job", precision=0, elem_id="job-number")
                stop = gr.Button("Stop this job", elem_id="stop-job")
            said = gr.HTML(elem_id="queue-said")
        stop.click(_stopper(queue), number, said, api_visibility="private")

        def look(folder: str, known: dict[str, Any]) -> list[Any]:
            parts = [*teach.now(folder, known), *draw.now(known)]
            parts += [*compare.now(known), *inside.now(known)]
            return [*parts, if_changed(known, "queue", queue_html(queue)), known]

        parts = [*teach.shown, *draw.shown, *compare.shown, *inside.shown]
        quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        outputs = [*parts, table, seen]
        gr.Timer(SECONDS).tick(look, [teach.subject, seen], outputs, **quiet)
        page.load(look, [teach.subject, seen], outputs, **quiet)
    return page


def _stopper(queue: Queue) -> Any:
    @told(0)
    def stop(number: float | None) -> tuple[str]:
        job = queue.stop(int(number or 0))
        return (f"job {job.number} ends",)

    return stop
