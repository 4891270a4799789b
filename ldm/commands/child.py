"""A command that another command starts, such as the training of a sweep's trial."""

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

from ldm.runs.signals import ASKING


class Ended(NamedTuple):
    """The exit code, and whether this process was asked to stop meanwhile."""

    code: int
    asked: bool


def ended(command: Sequence[str]) -> Ended:
    """Wait for `command` to its end, also where a signal asks to stop: it may have to save.

    `subprocess.run` would kill it a quarter of a second after Ctrl-C. Ctrl-C reaches it by the
    terminal; the other signals, which may be sent to this process alone, are passed on.
    """
    with subprocess.Popen(command) as child:
        asked = False

        def pass_on(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            asked = True
            if number != signal.SIGINT:
                child.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in ASKING}
        try:
            return Ended(child.wait(), asked)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
