"""The whole page: the tabs, the queue below them, and the clock that moves what changes."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from app import workplace
from app.compare import Compare, Inside
from app.draw import Draw
from app.jobs import Job, Queue
from app.looks import if_changed, newest, queue_html, told
from app.teach import Teach

SECONDS = 1.5  # between two looks at the queue
CSS = """
.gradio-container { max-width: min(1200px, 100%) !important; width: 100%;
  margin: 0 auto !important; }
h1 { font-size: 1.6rem; margin: .4rem 0; } h1 + p { margin: 0; opacity: .85; }
.bad { color: #b00020; font-weight: 600; } .good { opacity: .85; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; padding: .5rem;
  background: #8882; }
table { border-collapse: collapse; } table, tr { border: 0 !important; }
table td, table th { padding: .2rem .9rem .2rem 0; text-align: left; overflow-wrap: anywhere;
  border: 0 !important; border-bottom: 1px solid #8884 !important; }
th { font-weight: 600; opacity: .75; }
#queue th, #queue td:not(:last-child) { white-space: nowrap; overflow-wrap: normal; }
.block:has(> .html-container > .prose:empty) { display: none; }
#sheet .grid-container, #drawn .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(150px, 45%), 1fr)); }
tr.best { font-weight: bold; } progress { width: 12rem; }
iframe { width: 100%; height: 80vh; border: 1px solid #8885; }
@media (max-width: 600px) {
  #editor, #sheet { min-width: 0 !important; } h1 { font-size: 1.25rem; } }
"""
HEAD = """<h1>EqDiff: teach a subject, draw it anywhere</h1>
<p>Choose a subject, look at its masks, press Start. Then draw it, compare, look inside.</p>"""
# fonts of the machine: gradio's themes would ask for them elsewhere
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build(queue: Queue, base: str) -> gr.Blocks:
    """The page. base: what `--pretrained_model_name_or_path` says, "" for the usual one."""
    with gr.Blocks(title="EqDiff", analytics_enabled=False) as page:
        seen = gr.State(dict)
        gr.HTML(HEAD)
        with gr.Tabs() as tabs:
            with gr.Tab("Teach", id="teach"):
                teach = Teach(queue, base)
            with gr.Tab("Draw", id="draw"):
                draw = Draw(queue, base)
            with gr.Tab("Compare", id="compare"):
                compare = Compare(queue, base)
            with gr.Tab("Look inside", id="inside"):
                inside = Inside(queue)
        teach.next.click(draw_with(queue), None, [tabs, draw.concept], api_visibility="private")
        with gr.Accordion("Queue: one job at a time, the same in every browser", open=True):
            table = gr.HTML(elem_id="queue")
            with gr.Row():
                number = gr.Number(0, label="Job number", precision=0, elem_id="job-number")
                stop = gr.Button("Stop this job", elem_id="stop-job")
                again = gr.Button("Run this job again", elem_id="rerun-job")
            said = gr.HTML(elem_id="queue-said")
        stop.click(_asked(queue.stop, "ends"), number, said, api_visibility="private")
        again.click(_asked(queue.again, "is in the queue"), number, said, api_visibility="private")

        def look(folder: str, known: dict[str, Any]) -> list[Any]:
            parts = [*teach.now(folder, known), *draw.now(known)]
            parts += [*compare.now(known), *inside.now(known)]
            last = queue.jobs[-1].number if queue.jobs else 0
            queued = if_changed(known, "queue", queue_html(queue))
            return [*parts, queued, if_changed(known, "last job", last), known]

        parts = [*teach.shown, *draw.shown, *compare.shown, *inside.shown]
        quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        outputs = [*parts, table, number, seen]
        gr.Timer(SECONDS).tick(look, [teach.subject, seen], outputs, **quiet)
        page.load(look, [teach.subject, seen], outputs, **quiet)
    return page


def draw_with(queue: Queue) -> Any:
    """An action that opens the tab Draw with the concept that was taught last."""

    def show() -> tuple[Any, Any]:
        job = newest(queue, "teach")
        known = list(workplace.concepts())
        if job is None or job.target.name not in known:
            return gr.Tabs(selected="draw"), gr.skip()
        return gr.Tabs(selected="draw"), gr.Dropdown(choices=known, value=job.target.name)

    return show


def _asked(deed: Callable[[int], Job], said: str) -> Any:
    """An action that does this to the job of a number, and says what becomes of it."""

    @told(0)
    def act(number: float | None) -> tuple[str]:
        return (f"job {deed(int(number or 0)).number} {said}",)

    return act
