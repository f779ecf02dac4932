"""What a process knows of the `eqdiff.training.launch` that started it."""

import functools
import json
import os
import signal
import threading
import time

LAUNCHED = "EQDIFF_LAUNCHED"  # the launcher's process number, in the processes that it starts
BETWEEN_LOOKS = 1.0  # seconds
GRACE = 30.0  # seconds for a step and its checkpoint; torchrun waits as long


def hand_over(message: str) -> bool:
    """Leaves a process's last message to the launcher, which prints it. False: there is none."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or LAUNCHED not in os.environ:
        return False

    try:
        with open(file, "w", encoding="utf-8", errors="replace") as out:
            json.dump({"message": message, "timestamp": int(time.time())}, out)
    except OSError:  # the disk is full: the process prints it itself
        return False
    return True


@functools.cache
def watch_launcher() -> None:
    """Starts a thread that ends this process when its launcher is gone, killed say.

    It sends SIGTERM, on which a training saves its step, and GRACE seconds later SIGKILL. Without
    it the process would go on unseen, or wait for its partners for ever.
    """
    launcher = os.environ.get(LAUNCHED, "")
    if launcher.isdecimal() and int(launcher) == os.getppid():
        threading.Thread(target=_follow, args=(int(launcher),), daemon=True).start()


def _follow(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(BETWEEN_LOOKS)

    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
