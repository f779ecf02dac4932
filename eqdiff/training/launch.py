"""Several processes of one script on this machine, by torchrun.

    python -m eqdiff.training.launch PROCESSES SCRIPT [ARG ...]

Three things torchrun does not do. The error that brought a process down is printed once, in the
process's own words. Its exit status becomes this program's: 2 for a user's error, 128 + number for
a signal. And every signal that would end this program is passed on to the processes.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import eqdiff.process.early  # noqa: F401  before torch: for Ctrl-C while that is imported

# isort: split

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from eqdiff.errors import main_guard
from eqdiff.process.launched import LAUNCHED
from eqdiff.process.streams import print_last
from eqdiff.training.signals import ending_signals


def root_cause(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """Rank and torch's ProcessFailure of the process that failed of itself.

    That is one with a user's error, else the first to fail: the others fail because their partner
    is gone, in any order.
    """
    return min(failures.items(), key=lambda item: (item[1].exitcode != 2, item[1].timestamp))


def explain(failures: Mapping[int, Any]) -> tuple[str, int]:
    """The message for processes that failed, and the exit status.

    The message is "" if they printed it themselves.
    """
    rank, failure = root_cause(failures)
    code = failure.exitcode
    if code - 128 in signal.valid_signals():
        return "", code

    if isinstance(failure.error_file_data.get("message"), str):
        text = failure.message
    else:
        ended = f"signal {-code}" if code < 0 else f"status {code}"
        text = f"error: process {rank} ended with {ended}; see its messages above"
    return text, code if code > 0 else 128 - code


def _pass_on(number: int, frame: object) -> NoReturn:
    """The handler of a signal: torchrun sends it to all processes, and waits for them."""
    raise SignalException(f"signal {number}", sigval=signal.Signals(number))


def _handle_signals() -> None:
    """Sets the handlers, and lets torchrun set no others.

    Older versions of torchrun set those of four signals whatever they were before. So SIGHUP, if it
    is to be ignored as `nohup` wants it, is blocked too.
    """
    ending = [each for each in signal.Signals if each in ending_signals()]
    for each in ending:
        signal.signal(each, _pass_on)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(each.name for each in ending)

    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup and hangup not in ending:
        signal.pthread_sigmask(signal.SIG_BLOCK, [hangup])


@main_guard
def main(argv: Sequence[str]) -> None:
    processes, *command = argv
    os.environ[LAUNCHED] = str(os.getpid())
    logging.disable(logging.CRITICAL)  # torchrun's own account of what happens
    _handle_signals()

    try:
        run.run(run.parse_args(["--standalone", "--nproc_per_node", processes, *command]))
    except ChildFailedError as error:
        text, status = explain(error.failures)
        if text:
            print_last(text)
        sys.exit(status)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main(sys.argv[1:])
