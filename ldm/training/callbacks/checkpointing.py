"""Checkpoints at optimizer-step boundaries, each a whole folder or none; and the way back."""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_map

from ldm.runs.checkpoints import (
    SHARDS,
    STATE,
    Checkpoint,
    begin,
    checkpoints,
    finish,
    prune,
    write_checkpoint,
)
from ldm.runs.shards import read_shards, shapes, write_shards
from ldm.runs.signals import stop_signals
from ldm.training.agreement import Agreement
from ldm.training.state import collect, is_sharded, restore, targets

_FAILED = 1000  # above every signal's number


class Stopped(Exception):
    """The training was asked to stop, and did at this step; `saved` is the step that is saved."""

    def __init__(self, signal: int, step: int, saved: int | None) -> None:
        super().__init__(f"stopped by signal {signal} at step {step}")
        self.signal, self.step, self.saved = signal, step, saved


class WriteError(RuntimeError):
    """Checkpoints could not be written, too often in a row."""


class Checkpointing(L.Callback):
    """Writes `folder/step-N` every `every` optimizer steps, when the process is told to stop, and
    at the end; keeps the newest `keep`, and for ever those whose step `keep_every` divides.

    A step is saved when all that belongs to it is done, its validation and samples included; only
    a signal during a validation saves before that, and the validation is then repeated. Unsharded
    states are written in the background. A write that fails costs a warning and leaves the older
    ones; `patience` failures in a row end the training.

    `resume` is where the training continues (known to rank 0, which tells the others).
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        keep: int = 2,
        keep_every: int | None = None,
        resume: Checkpoint | None = None,
        patience: int = 3,
    ) -> None:
        if every < 1 or keep < 1:
            raise ValueError(
                f"checkpoint.every={every}, checkpoint.keep={keep}: both must be 1 or more"
            )
        self.folder, self.every, self.keep, self.keep_every = folder, every, keep, keep_every
        self.resume, self.patience = resume, patience
        self.failures = 0
        self._written = 0
        self._unfinished_evaluation = False
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Checkpoint] | None = None
        self._agreement: Agreement

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Weights, optimizer and counters as the checkpoint has them."""
        self._agreement = Agreement()
        self.resume = trainer.strategy.broadcast(self.resume)
        if self.resume is not None:
            self._restore(trainer, module, self.resume)
        self._written = trainer.global_step

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """From here on signals are waited with; a validation that was broken off is repeated."""
        stop_signals.install()  # Lightning has put its own handlers there
        stop_signals.training = True
        # Its exchange would make the host wait for the device in every step.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        if self._unfinished_evaluation:
            self._unfinished_evaluation = False
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Between two optimizer steps: everything that belongs to the first is done."""
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if (ready - 1) % trainer.accumulate_grad_batches:
            return
        told = self._agreement.tell(self._news())
        if told >= _FAILED:
            raise WriteError(
                f"checkpoints could not be written {self.failures} times in a row; make room in "
                f"{self.folder}, then start the same command again"
            )
        if told:
            self._stop(trainer, module, told, evaluated=True)
        elif trainer.global_step % self.every == 0:
            self.write(trainer, module)

    def on_validation_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """A signal does not wait for a long validation, unless it is the last."""
        if trainer.global_step >= trainer.max_steps > 0:
            return
        if told := self._agreement.tell(self._news()) % _FAILED:
            self._stop(trainer, module, told, evaluated=False)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The last step is always kept; WriteError when it cannot be."""
        self.write(trainer, module)
        self._settle()
        failed = self._written != trainer.global_step
        if self._agreement.now(failed):
            raise WriteError(
                f"the last step is not saved; make room in {self.folder}, then start the same "
                "command again"
            )

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        """What is being written is brought to its end."""
        self._settle()

    def write(self, trainer: L.Trainer, module: L.LightningModule, evaluated: bool = True) -> None:
        """Every rank calls it. Returns before the file is whole, unless the state is sharded."""
        step = trainer.global_step
        self._settle()
        if step == self._written:
            return
        self._written = step
        state = {**collect(trainer, module), "evaluated": evaluated}
        if is_sharded(state):
            self._write_shards(trainer, state, step)
        elif trainer.is_global_zero:
            copy = tree_map(_on_cpu, state)
            self._pending = self._background.submit(self._write_whole, copy, step)

    def _stop(self, trainer: L.Trainer, module: Any, told: int, evaluated: bool) -> None:
        self.write(trainer, module, evaluated)
        self._settle()
        trainer.strategy.barrier("stopped")
        good = checkpoints(self.folder) if trainer.is_global_zero else []
        raise Stopped(told, trainer.global_step, good[-1].step if good else None)

    def _news(self) -> int:
        if self._pending is not None and self._pending.done():
            self._settle()
        return _FAILED if self.failures >= self.patience else stop_signals.received

    def _write_whole(self, state: dict[str, Any], step: int) -> Checkpoint:
        written = write_checkpoint(
            self.folder, step, lambda draft: torch.save(state, draft / STATE)
        )
        prune(self.folder, self.keep, self.keep_every)
        return written

    def _write_shards(self, trainer: L.Trainer, state: dict[str, Any], step: int) -> None:
        tensors = {"state_dict": state.pop("state_dict"), "optimizer": state.pop("optimizer")}
        draft = trainer.strategy.broadcast(self._begin(trainer, step))
        try:
            if draft is None:
                raise OSError("rank 0 could not begin")
            write_shards(draft / SHARDS, tensors)
            if trainer.is_global_zero:
                torch.save(state, draft / STATE)
                finish(draft, step)
                prune(self.folder, self.keep, self.keep_every)
            failed = 0
        except Exception as error:  # a rank's own, or that of another, which all ranks are told
            self._warn(step, error)
            failed = 1
        if self._agreement.now(failed):
            self._fail()
            if trainer.is_global_zero and draft is not None:
                shutil.rmtree(draft, ignore_errors=True)
        else:
            self.failures = 0

    def _begin(self, trainer: L.Trainer, step: int) -> Path | None:
        if not trainer.is_global_zero:
            return None
        try:
            return begin(self.folder, step)
        except OSError as error:
            self._warn(step, error)
            return None

    def _settle(self) -> None:
        """Wait for the write in the background, and learn how it went."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            step = pending.result().step
            self.failures = 0
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as the latter
            self._warn(self._written, error)
            self._fail()
        else:
            self._written = step

    def _fail(self) -> None:
        self.failures += 1
        self._written = -1  # the same step may be tried again

    def _warn(self, step: int, error: BaseException) -> None:
        rank_zero_warn(
            f"step {step}: the checkpoint could not be written ({str(error).splitlines()[0]}); the "
            f"older ones stay, training goes on, the next try is at a multiple of {self.every}"
        )

    def _restore(self, trainer: L.Trainer, module: L.LightningModule, found: Checkpoint) -> None:
        state = found.numbers()
        if found.shards is not None:
            state |= read_shards(found.shards, targets(module, shapes(found.shards)))
        restore(trainer, module, {"optimizer": {}, **state})
        self._unfinished_evaluation = not state.get("evaluated", True)


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def _nothing() -> None:
    """In the place of what is switched off."""
