"""Checkpoints at optimizer-step boundaries, each a whole folder or none."""

from pathlib import Path
from typing import Any

import lightning as L

from ldm.runs.checkpoints import STATE, prune, write_checkpoint


class Checkpointing(L.Callback):
    """Writes `folder/step-N` every `every` optimizer steps and at the end; keeps the newest
    `keep`, and for ever those whose step `keep_every` divides."""

    def __init__(
        self, folder: Path, *, every: int, keep: int = 2, keep_every: int | None = None
    ) -> None:
        if every < 1 or keep < 1:
            raise ValueError(
                f"checkpoint.every={every}, checkpoint.keep={keep}: both must be 1 or more"
            )
        self.folder, self.every, self.keep, self.keep_every = folder, every, keep, keep_every
        self._written = -1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """After the step that `every` divides."""
        if trainer.global_step % self.every == 0:
            self.write(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The last step is always kept."""
        self.write(trainer)

    def write(self, trainer: L.Trainer) -> None:
        """Every rank calls it; the strategy decides who writes what."""
        step = trainer.global_step
        if step == self._written:
            return
        self._written = step
        state = trainer._checkpoint_connector.dump_checkpoint()
        if trainer.is_global_zero:
            write_checkpoint(
                self.folder,
                step,
                lambda draft: trainer.strategy.checkpoint_io.save_checkpoint(state, draft / STATE),
            )
            prune(self.folder, self.keep, self.keep_every)
        trainer.strategy.barrier("checkpoint")
