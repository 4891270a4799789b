"""Says where a training hangs."""

import os
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L

_KNOWN = 20  # steps after which it is known what is usual


class Watchdog(L.Callback):
    """When a phase lasts `factor` times as long as a usual step, and `least` seconds, each rank
    that hangs writes its name, phase and stack to stderr and to `folder`; once a hang.

    The phases are data (between steps), step (forward, backward, collectives), validation, and
    what else happens between steps: samples and checkpoints. With `abort`, the process ends with
    code 75 after as long again, so that a scheduler can start it anew.
    """

    def __init__(
        self, folder: Path, *, factor: float = 20.0, least: float = 300.0, abort: bool = False
    ) -> None:
        self.folder, self.factor, self.least, self.abort = folder, factor, least, abort
        self._seconds: deque[float] = deque(maxlen=200)
        self._phase, self._since, self._step = "set-up", time.monotonic(), 0
        self._done = threading.Event()
        self._rank = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin to watch."""
        self._rank = trainer.global_rank
        self._enter("data", trainer)
        main = threading.get_ident()
        threading.Thread(target=self._watch, args=(main,), name="watchdog", daemon=True).start()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """From data to step."""
        self._enter("step", trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """From step to whatever comes between steps."""
        self._seconds.append(time.monotonic() - self._since)
        self._enter("data, samples or checkpoint", trainer)

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        """A validation is a phase."""
        self._enter("validation", trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Each of its batches is a sign of life."""
        self._enter("validation", trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop watching."""
        self._done.set()

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop watching."""
        self._done.set()

    def patience(self) -> float:
        """Seconds after which a phase counts as hanging."""
        if len(self._seconds) < _KNOWN:
            return 4 * self.least  # the first steps compile and warm up
        return max(self.least, self.factor * statistics.median(self._seconds))

    def _enter(self, phase: str, trainer: L.Trainer) -> None:
        self._phase, self._since, self._step = phase, time.monotonic(), trainer.global_step

    def _watch(self, main: int) -> None:
        told = 0.0
        while not self._done.wait(min(5.0, self.least / 4)):
            since, patience = self._since, self.patience()
            waited = time.monotonic() - since
            if waited > patience and told != since:
                told = since
                self._tell(main, waited)
            if self.abort and waited > 2 * patience:
                os._exit(75)

    def _tell(self, main: int, waited: float) -> None:
        frame = sys._current_frames().get(main)
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        text = (
            f"rank {self._rank} hangs in `{self._phase}` at step {self._step} for {waited:.0f} s; "
            f"a step usually takes {statistics.median(self._seconds or [0.0]):.2f} s\n{stack}"
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"hang-rank-{self._rank}.txt").write_text(text)
        sys.stderr.write(text)
