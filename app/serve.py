"""The page in the browser: bash scripts/app.sh [--port N] [--help].

It listens on this machine alone, asks nobody for anything, and is never shared.
"""

import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

import eqdiff.process.early  # noqa: F401  first: for Ctrl-C while the rest is imported
from eqdiff.errors import UserError, main_guard, require
from eqdiff.settings.app import AppConfig
from eqdiff.settings.presets import parse
from eqdiff.wording import say, start_logging


@main_guard
def main(argv: Sequence[str] | None = None) -> None:
    start_logging()
    config = parse(AppConfig, argv)
    require_port(config.host, config.port)
    missing = find_spec("gradio") is None
    require(not missing, "gradio is not installed here: run bash scripts/app.sh, which installs it")

    from app.workplace import CACHE, LOGS, MOST_BYTES, OUTPUTS, OWN, QUEUE

    # read when gradio is imported
    os.environ["GRADIO_TEMP_DIR"] = str(CACHE.absolute())
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from app import kept
    from app.jobs import Queue
    from app.page import CSS, THEME, build

    OWN.mkdir(parents=True, exist_ok=True)
    queue = Queue(LOGS, kept.read(QUEUE), functools.partial(kept.keep, QUEUE))
    page = build(queue, config.pretrained_model_name_or_path or "")
    page.queue(default_concurrency_limit=4)
    page.launch(
        server_name=config.host,
        server_port=config.port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        theme=THEME,
        css=CSS,
        footer_links=[],
        max_file_size=MOST_BYTES,
        blocked_paths=[str(LOGS.absolute()), str(QUEUE.absolute())],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    say(f"open http://{config.host}:{config.port} in a browser; results go into {OUTPUTS}/")
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        say("note: whoever reaches this machine may use it, and see what is in its queue")
    wait_for_the_end()
    say("ending; a running training saves its step, and jobs that wait run at the next start")
    queue.close()
    page.close(verbose=False)


def require_port(host: str, port: int) -> None:
    """Raises UserError if nothing can listen there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({reason}); give another --port"
        ) from None


def wait_for_the_end() -> None:
    """Waits for Ctrl-C or SIGTERM.

    The handler takes no lock. It runs between two lines of this thread: a lock that this thread
    held there, as within threading.Event.wait, would never come free.
    """
    came: list[int] = []
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, _: came.append(number))
    while not came:
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1:])
