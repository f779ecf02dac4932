"""Several processes of one script on this machine, by torchrun: python -m eqdiff.launch PROCESSES SCRIPT [ARG ...]

What torchrun does not do: whatever brought a process down is said once, in the process's own words, and its exit status
is this program's: 2 for what a user got wrong, 130 and 143 for SIGINT and SIGTERM.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from eqdiff.options import LAUNCHED


def root_cause(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """Rank and torch's ProcessFailure of the process that failed of itself: a user's error before all, then the first;
    others fail because their partner is gone, in any order."""
    return min(failures.items(), key=lambda item: (item[1].exitcode != 2, item[1].timestamp))


def explain(failures: Mapping[int, Any]) -> tuple[str, int]:
    """What to say of processes that failed ("" if they said it themselves), and the exit status."""
    rank, failure = root_cause(failures)
    stopped = {128 + signal.SIGINT, 128 + signal.SIGTERM}
    if failure.exitcode in stopped:
        return "", failure.exitcode
    known = isinstance(failure.error_file_data.get("message"), str)
    ended = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"status {failure.exitcode}"
    text = failure.message if known else f"error: process {rank} ended with {ended}; see its messages above"
    return text, failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode


def main(argv: Sequence[str]) -> int:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    processes, *command = argv
    os.environ[LAUNCHED] = "1"
    logging.disable(logging.CRITICAL)  # torchrun's own account of what happens
    try:
        run.run(run.parse_args(["--standalone", "--nproc_per_node", processes, *command]))
    except ChildFailedError as error:
        text, status = explain(error.failures)
        if text:
            print(text, file=sys.stderr)
        return status
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
