"""Checkpoints at optimizer-step boundaries, each a whole folder or none; and the way back."""

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from ldm.runs.checkpoints import Best, Checkpoint, best_of, checkpoints, mark_best
from ldm.runs.shards import read_shards, shapes
from ldm.runs.signals import stop_signals
from ldm.training.agreement import Agreement
from ldm.training.callbacks.writing import CheckpointWriter
from ldm.training.nonfinite import NonFiniteError
from ldm.training.state import collect, put_back, restore, targets

_FAILED = 1000  # above every signal's number


class Stopped(Exception):
    """The training was asked to stop, and did at this step; `saved` is the step that is saved."""

    def __init__(self, signal: int, step: int, saved: int | None) -> None:
        super().__init__(f"stopped by signal {signal} at step {step}")
        self.signal, self.step, self.saved = signal, step, saved


class UnmeasuredError(RuntimeError):
    """The number by which the best step is told is measured by nobody."""


class WriteError(RuntimeError):
    """Checkpoints could not be written, too often in a row."""


class Checkpointing(L.Callback):
    """Writes `folder/step-N` every `every` optimizer steps, when the process is told to stop, and
    at the end; keeps the newest `keep`, and for ever those whose step `keep_every` divides, and
    the one at which the validated number `best` was lowest (`-NAME`: highest).

    A step is saved when all that belongs to it is done, its validation and samples included; only
    a signal during a validation saves before that, and the validation is then repeated. States are
    written in the background. A write that fails costs a warning; `patience` failures in a row end
    the training.

    When the module gives up on where it has come to (`nonfinite.lost_since`), weights, average and
    optimizer go back to the newest checkpoint before that step, while the step, and with it data,
    noise and learning rate, go on: up to `go_backs` times, for what led there is not met again.

    `resume` is where the training continues (known to rank 0, which tells the others).
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        keep: int = 2,
        keep_every: int | None = None,
        best: str | None = None,
        resume: Checkpoint | None = None,
        patience: int = 3,
        go_backs: int = 3,
    ) -> None:
        if every < 1 or keep < 1:
            raise ValueError(
                f"checkpoint.every={every}, checkpoint.keep={keep}: both must be 1 or more"
            )
        self.folder, self.every, self.best = folder, every, best
        self.resume, self.patience, self.go_backs = resume, patience, go_backs
        self.writer = CheckpointWriter(folder, keep=keep, keep_every=keep_every, again=every)
        self._lowest = math.inf
        self._validated = False
        self._unfinished_evaluation = False
        self._began = 0
        self._agreement: Agreement

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Weights, optimizer and counters as the checkpoint has them."""
        self._agreement = Agreement()
        self.resume = trainer.strategy.broadcast(self.resume)
        if self.resume is not None:
            state = self._read(module, self.resume)
            restore(trainer, module, state)
            self._unfinished_evaluation = not state.get("evaluated", True)
        self.writer.open(trainer.global_step)
        best = best_of(self.folder)
        if best is not None and best.metric == self.best and best.step <= trainer.global_step:
            self._lowest = best.value

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """From here on signals are waited with; a validation that was broken off is repeated."""
        stop_signals.install()  # Lightning has put its own handlers there
        stop_signals.training = True
        self._began = trainer.global_step
        # Its exchange would make the host wait for the device in every step.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        if self._unfinished_evaluation:
            self._unfinished_evaluation = False
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Between two optimizer steps: everything that belongs to the first is done."""
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if (ready - 1) % trainer.accumulate_grad_batches:
            return
        if unmeasured := self._unmeasured(trainer):
            self.write(trainer, module)
            raise UnmeasuredError(unmeasured)
        best = self._new_best(trainer)
        told = self._agreement.tell(self._news())
        if told >= _FAILED:
            raise WriteError(
                f"checkpoints could not be written {self.writer.failures} times in a row; make "
                f"room in {self.folder}, then start the same command again"
            )
        if told:
            self._stop(trainer, module, told, best=best)
        elif module.nonfinite.lost_since is not None:
            self._go_back(trainer, module, module.nonfinite.lost_since)
        elif trainer.global_step % self.every == 0 or best is not None:
            self.write(trainer, module, best=best)

    def on_validation_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """A signal does not wait for a long validation, unless it is the last."""
        if trainer.global_step >= trainer.max_steps > 0:
            return
        if told := self._agreement.tell(self._news()) % _FAILED:
            self._stop(trainer, module, told, evaluated=False)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """There are new numbers to be the best by."""
        self._validated = True

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The last step is always kept; WriteError when it cannot be."""
        self.write(trainer, module, best=self._new_best(trainer))
        self.writer.settle()
        failed = self.writer.written != trainer.global_step
        if self._agreement.now(failed):
            raise WriteError(
                f"the last step is not saved; make room in {self.folder}, then start the same "
                "command again"
            )

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        """What is being written is brought to its end."""
        self.writer.settle()

    def write(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        *,
        evaluated: bool = True,
        best: Best | None = None,
    ) -> None:
        """Every rank calls it. Returns before the files are whole."""
        step = trainer.global_step
        self.writer.settle()
        if step != self.writer.written:
            state = {**collect(trainer, module), "evaluated": evaluated}
            self.writer.write(trainer, state, step, best)
        elif best is not None and trainer.is_global_zero:  # saved before its validation was done
            mark_best(self.folder, best)

    def _stop(self, trainer: L.Trainer, module: Any, told: int, **write: Any) -> None:
        self.write(trainer, module, **write)
        self.writer.settle()
        trainer.strategy.barrier("stopped")
        good = checkpoints(self.folder) if trainer.is_global_zero else []
        raise Stopped(told, trainer.global_step, good[-1].step if good else None)

    def _news(self) -> int:
        self.writer.look()
        return _FAILED if self.writer.failures >= self.patience else stop_signals.received

    def _unmeasured(self, trainer: L.Trainer) -> str | None:
        """After the first validation, why no later one will tell the best step either."""
        # A validation that is repeated where the training goes on draws no samples.
        validated = self._validated and trainer.global_step > self._began
        if self.best is None or not validated or self._lowest < math.inf:
            return None
        if self.best.removeprefix("-") in trainer.callback_metrics:
            return None
        judging = ("val/", "sample/", "reconstruction/")
        there = ", ".join(n for n in sorted(trainer.callback_metrics) if n.startswith(judging))
        return f"checkpoint.best={self.best}: not measured; set null or one of: {there}"

    def _new_best(self, trainer: L.Trainer) -> Best | None:
        """What was just validated, if it is better than all before; the same on every rank."""
        if self.best is None or not self._validated:
            return None
        self._validated = False
        name = self.best.removeprefix("-")
        if name not in trainer.callback_metrics:  # though it has been, once
            rank_zero_warn(f"checkpoint.best={self.best}: not measured at {trainer.global_step}")
            return None
        sign = -1.0 if self.best.startswith("-") else 1.0
        value = trainer.strategy.broadcast(sign * float(trainer.callback_metrics[name]))
        if not value < self._lowest:
            return None
        self._lowest = value
        return Best(trainer.global_step, self.best, value)

    def _go_back(self, trainer: L.Trainer, module: Any, before: int) -> None:
        earlier = [c for c in checkpoints(self.folder) if c.step < before and c.damage() is None]
        self.go_backs -= 1
        found = trainer.strategy.broadcast(earlier[-1] if earlier else None)
        if found is None or self.go_backs < 0:
            raise NonFiniteError(
                f"{module.nonfinite.why}; going back did not help, or there is nothing to go back "
                "to: lower the learning rate, or look at the data"
            )
        put_back(trainer, module, self._read(module, found), trainer.global_step)
        module.nonfinite.found()
        rank_zero_warn(
            f"step {trainer.global_step}: {module.nonfinite.why}; weights and optimizer are those "
            f"of step {found.step} again, data and noise go on"
        )
        self.write(trainer, module)  # a kill from here on must not lead to the old place

    def _read(self, module: L.LightningModule, found: Checkpoint) -> dict[str, Any]:
        state = found.numbers()
        if found.shards is not None:
            state |= read_shards(found.shards, targets(module, shapes(found.shards)))
        return {"optimizer": {}, **state}


def _nothing() -> None:
    """In the place of what is switched off."""
