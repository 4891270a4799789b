"""Signals that ask a training to stop. Imports nothing heavy: it is at work from the first line.

A handler only remembers the signal; the training looks at a step boundary, where all ranks agree,
saves and leaves. Before there is anything to save, the process leaves at once.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAVED = 85  # stopped by a signal and saved: the same command continues
RETRY = 75  # stopped before there was anything to save: the same command starts
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """The signals that were received, 0 for none. A second one waits for the save that the first
    caused; the third ends the process at once."""

    def __init__(self) -> None:
        self.received = 0
        self.count = 0
        self.training = False
        self._process = 0

    def install(self) -> None:
        """Handle the signals from now on. Slurm's SIGCONT, which comes with each, means nothing."""
        self._process = os.getpid()
        for number in ASKING:
            signal.signal(number, self._remember)

    def forget(self) -> None:
        """Nothing received; back to the state before training."""
        self.received = self.count = 0
        self.training = False

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Afterwards the signals do what they did before, for a process that has more to do than
        to train."""
        before = {number: signal.getsignal(number) for number in ASKING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.forget()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data worker: it goes on reading until the training has saved
        self.count += 1
        self.received = self.received or number
        name = signal.Signals(number).name
        if not self.training:
            _say(f"{name} before training began: nothing to save; start it again")
            os._exit(RETRY)
        if self.count >= 3:
            _say(f"{name} for the third time: leaving without saving")
            os._exit(RETRY)
        _say(f"{name}: saving after this step" if self.count == 1 else f"{name}: still saving")


def _say(text: str) -> None:
    # Not print: a handler may run inside another print.
    os.write(2, f"{text}\n".encode())


stop_signals = StopSignals()  # one a process, as handlers are
