"""Where along the path from data to noise the loss comes from."""

from typing import Any

import lightning as L
import torch.distributed as distributed


class LossByTime(L.Callback):
    """Logs the mean loss in even bins of t since the last log, over all ranks and turns, as
    `train/loss_by_time/FROM-TO`. Bins that no sample fell into are left out.

    The sums grow on the device (`TimeBins`); the host reads them only at steps that are logged.
    """

    def __init__(self) -> None:
        self._logged = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Once for each step that is logged."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % every or step == self._logged:
            return
        self._logged = step
        totals = module.bins.take()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(totals)
        bins = totals.shape[1]
        for number, (loss, count) in enumerate(totals.T.tolist()):
            if count > 0:
                name = f"train/loss_by_time/{number / bins:.3f}-{(number + 1) / bins:.3f}"
                module.log(name, loss / count)
