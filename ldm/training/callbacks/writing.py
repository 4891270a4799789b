"""Checkpoints written beside the training: every rank copies its part, then goes on."""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as distributed
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils._pytree import tree_map

from ldm import ranks
from ldm.runs.checkpoints import (
    SHARDS,
    STATE,
    Best,
    begin,
    finish,
    mark_best,
    prune,
    write_checkpoint,
)
from ldm.runs.shards import write_shards
from ldm.training.agreement import Agreement
from ldm.training.state import is_sharded


class CheckpointWriter:
    """One checkpoint at a time into `folder`, in a thread: by rank 0 where it holds everything, by
    all ranks where they hold parts. Older ones go when a new one is whole.

    A write that fails costs a warning, leaves the older ones and is counted: `failures` is how
    many were in a row. `written` is the last step that was, or is being, written.
    """

    def __init__(self, folder: Path, *, keep: int, keep_every: int | None, again: int) -> None:
        self.folder, self.keep, self.keep_every, self.again = folder, keep, keep_every, again
        self.failures, self.written = 0, -1
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._between: Agreement
        self._group: Any = None

    def open(self, written: int) -> None:
        """Every rank calls it, once there are ranks; `written` is the step that is there."""
        self.written = written
        self._between = Agreement()
        if ranks.together():
            self._group = distributed.new_group(backend="gloo")  # its own: the thread uses it

    def write(
        self, trainer: L.Trainer, state: dict[str, Any], step: int, best: Best | None
    ) -> None:
        """Every rank calls it; the tensors may change as soon as it returns. `settle` tells what
        went wrong."""
        self.settle()
        self.written = step
        if is_sharded(state):
            draft = trainer.strategy.broadcast(self._begin(trainer, step))
            copy = tree_map(_on_cpu, state)
            job = self._parts(draft, copy, step, best, trainer.is_global_zero)
        elif trainer.is_global_zero:
            copy = tree_map(_on_cpu, state)
            job = self._whole(copy, step, best)
        else:
            return
        self._pending = self._thread.submit(job)

    def settle(self) -> None:
        """Wait for what is being written, and learn how it went."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
            self.failures = 0
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as the latter
            rank_zero_warn(
                f"step {self.written}: the checkpoint could not be written "
                f"({str(error).splitlines()[0]}); the older ones stay, training goes on, the next "
                f"try is at a multiple of {self.again}"
            )
            self.failures += 1
            self.written = -1  # the same step may be tried again

    def look(self) -> None:
        """As `settle`, without waiting."""
        if self._pending is not None and self._pending.done():
            self.settle()

    def _whole(self, state: dict[str, Any], step: int, best: Best | None) -> Callable[[], None]:
        def job() -> None:
            self._save(state, step)
            self._follow_up(best)

        return job

    def _save(self, state: dict[str, Any], step: int) -> None:
        write_checkpoint(self.folder, step, lambda draft: torch.save(state, draft / STATE))

    def _parts(
        self, draft: Path | None, state: dict[str, Any], step: int, best: Best | None, first: bool
    ) -> Callable[[], None]:
        tensors = {"state_dict": state.pop("state_dict"), "optimizer": state.pop("optimizer")}

        def job() -> None:
            failed: BaseException | None = None
            try:
                if draft is None:
                    raise OSError("rank 0 could not begin")
                write_shards(draft / SHARDS, tensors, self._group)
                if first:
                    torch.save(state, draft / STATE)
                    finish(draft, step)
                    self._follow_up(best)
            except CheckpointException as error:  # no Exception to torch; all ranks are told
                failed = next(iter(error.failures.values()))[0]
            except Exception as error:
                failed = error
            if self._between.now(failed is not None):
                if first and draft is not None:
                    shutil.rmtree(draft, ignore_errors=True)
                raise OSError(str(failed or "on another rank"))

        return job

    def _follow_up(self, best: Best | None) -> None:
        if best is not None:
            mark_best(self.folder, best)
        prune(self.folder, self.keep, self.keep_every)

    def _begin(self, trainer: L.Trainer, step: int) -> Path | None:
        if not trainer.is_global_zero:
            return None
        try:
            return begin(self.folder, step)
        except OSError as error:
            rank_zero_warn(f"step {step}: no checkpoint can be begun ({error})")
            return None


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
