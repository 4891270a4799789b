"""What a person watches: a bar with the time left, and one plain line every n steps in a log."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Work:
    """Floating-point operations that training on one picture takes in the trained network, and how
    many a device can do in a second at best (None where that is not known)."""

    operations: float
    peak: float | None = None


class StepProgress(L.Callback):
    """A bar over optimizer steps on a terminal, plain lines in `file` and where there is none.

    Throughput and the share of time that was spent waiting for data are logged with the metrics;
    where the `work` is known, with what a device does of it, and the share of its best (model FLOP
    utilisation: frozen networks and recomputed blocks do not count as work).
    """

    def __init__(
        self, file: Path, *, every: int, global_batch: int, work: Work | None = None
    ) -> None:
        self.file, self.every, self.global_batch, self.work = file, every, global_batch, work
        self.console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._task: Any = None
        self._since, self._from_step, self._waited, self._ended = 0.0, 0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the bar at the step where the training goes on."""
        self._since = self._ended = time.monotonic()
        self._from_step, self._waited = trainer.global_step, 0.0
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar = Progress(
                "{task.description}",
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=trainer.max_steps, completed=trainer.global_step, note=""
            )

    def on_train_batch_start(self, *_: Any) -> None:
        """The time since the last step ended was spent waiting for data."""
        self._waited += time.monotonic() - self._ended

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Move the bar; every n steps write a line."""
        self._ended = time.monotonic()
        step = trainer.global_step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        if step % self.every or step == self._from_step:
            return
        seconds = self._ended - self._since
        rate = (step - self._from_step) * self.global_batch / seconds
        module.log("time/images_per_second", rate)
        module.log("time/data_wait_share", self._waited / seconds)
        if self.work is not None:
            speed = rate * self.work.operations / trainer.world_size
            module.log("time/model_tflops", speed / 1e12)
            if self.work.peak is not None:
                module.log("time/model_flop_utilisation", speed / self.work.peak)
        self._since, self._from_step, self._waited = self._ended, step, 0.0
        self._write(trainer, rate)

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        """Leave the terminal as it was."""
        self._close()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _write(self, trainer: L.Trainer, rate: float) -> None:
        if not trainer.is_global_zero:
            return
        loss = trainer.callback_metrics.get("train/loss")
        note = f"{rate:.0f} images/s" + ("" if loss is None else f"  loss {float(loss):.4f}")
        left = (trainer.max_steps - trainer.global_step) * self.global_batch / rate
        line = (
            f"{time.strftime('%H:%M:%S')} step {trainer.global_step}/{trainer.max_steps}  {note}"
            f"  {_duration(left)} left"
        )
        with self.file.open("a") as file:
            file.write(line + "\n")
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            self.console.print(line, highlight=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _duration(seconds: float) -> str:
    """Two units at the most: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
