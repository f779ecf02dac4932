"""The signals that end a training: at once before its first step, then after a saved step."""

import signal
import sys
import threading
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from eqdiff.process.streams import print_last

if TYPE_CHECKING:
    from accelerate import Accelerator

    from eqdiff.training.agreement import Agreement

# The signals that end nothing: they cannot be caught, they tell of a fault in this very process,
# they stop and continue it, or Python ignores them (a write then fails instead).
UNTOUCHED = ("KILL", "STOP", "ABRT", "BUS", "FPE", "ILL", "SEGV", "SYS", "TRAP") + (
    *("TSTP", "TTIN", "TTOU", "CONT", "CHLD", "URG", "WINCH", "PIPE", "XFSZ", "INFO"),
)
# What a person sends, again if nothing seems to happen. Shells ignore two of them in what they
# start in the background, and a person may send them nevertheless.
HASTY = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGQUIT", signal.SIGTERM))
SECOND = 1.0  # seconds; a launcher may pass on a signal that the process has got already


def ending_signals() -> list[int]:
    """The numbers of all signals that would end this process, but for faults of its own.

    A signal that is ignored already is not among them: `nohup` does that to SIGHUP.
    """
    untouched = {getattr(signal, f"SIG{name}", None) for name in UNTOUCHED}
    numbers = sorted(signal.valid_signals() - untouched)
    return [
        number
        for number in numbers
        if number in HASTY or signal.getsignal(number) == signal.SIG_DFL
    ]


def print_stopped(number: int, where: str = "", above: str = "") -> None:
    """Prints the last line of a run that a signal ends."""
    named = number in set(signal.Signals)  # the real-time signals have numbers alone
    name = signal.Signals(number).name if named else f"signal {number}"
    print_last(f"{above}stopped by {name}{where}")


class Stopped(SystemExit):
    """Raised where a signal ends the run at once."""


class Signals(AbstractContextManager):
    """Ends a run on each of the signals of `ending_signals` with status 128 + number.

    At first a signal ends the run at once. After `defer`, it is only noted. Two of HASTY in a row
    do not wait; what a batch system sends may come again and again.

    received: the number of the signal that was noted, 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self.received_at = 0.0
        self.deferred = False
        self.ends_now = False  # a signal came that did not wait
        self.leaving = False
        self.agreement: Agreement | None = None
        self.original_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # others cannot have signals
            for number in ending_signals():
                self.original_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Restores the handlers. The run ends by its signal, whatever a library made of that."""
        self.leaving = True
        for number, handler in self.original_handlers.items():
            signal.signal(number, handler)

        if self.ends_now:
            print_stopped(self.received, above="\n")  # below a progress bar
            raise Stopped(128 + self.received)

    def _handle(self, number: int, frame: object) -> None:
        """Notes a signal, or raises Stopped. It prints nothing: that might be amid a write."""
        if self.leaving:
            return

        if not self.deferred or self._is_impatient(number):
            self.received = number
            self.ends_now = True
            raise Stopped(128 + number)

        if not self.received or (number in HASTY and self.received not in HASTY):
            self.received = number
            self.received_at = time.monotonic()

    def _is_impatient(self, number: int) -> bool:
        """Whether somebody repeats a signal who does not want to wait for the end of the step."""
        again = number in HASTY and self.received in HASTY
        return again and time.monotonic() - self.received_at > SECOND

    def defer(self, accelerator: "Accelerator") -> None:
        """From now on a signal waits for the end of the step. All processes call this together.

        Raises Stopped if a signal came before, and a library swallowed what it raised.
        """
        if self.ends_now:
            raise Stopped(128 + self.received)
        if accelerator.num_processes > 1:
            from eqdiff.training.agreement import Agreement  # torch, which --help does without

            self.agreement = Agreement()
        self.deferred = True

    def agreed(self) -> int:
        """The signal to stop for, 0 for none.

        It is the same in all processes at the same step, whichever of them received it.
        """
        if self.agreement is None:
            return self.received
        return self.agreement.largest(self.received)

    def stop(self, number: int) -> None:
        """Leaves with the status of this signal.

        Everything is saved by now, so a second signal is ignored.
        """
        for each in self.original_handlers:
            signal.signal(each, signal.SIG_IGN)
        self.original_handlers = {}
        sys.exit(128 + number)
