"""Where along the path from data to noise the loss comes from."""

from typing import Any

import lightning as L
import torch.distributed as distributed

from ldm import ranks


class LossByTime(L.Callback):
    """Logs the mean loss in even bins of t since the last log, over all ranks and turns, as
    `train/loss_by_time/FROM-TO`. Bins that no sample fell into are left out.

    The sums grow on the device (`TimeBins`); the host reads them only at steps that are logged,
    and what was not logged yet goes into checkpoints.
    """

    def __init__(self) -> None:
        self._logged = -1
        self._module: Any = None

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        """Remember whose losses they are."""
        self._module = module

    def state_dict(self) -> dict[str, Any]:
        """The sums of all ranks; every rank calls it."""
        totals = self._module.bins.totals.clone()
        ranks.add(totals)
        return {"totals": totals}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Rank 0 goes on with what all had."""
        first = not ranks.together() or distributed.get_rank() == 0
        self._module.bins.totals.copy_(state_dict["totals"] * first)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """The step where it begins was logged when it was trained."""
        self._logged = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """Once for each step that is logged."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % every or step == self._logged:
            return
        self._logged = step
        totals = module.bins.take()
        ranks.add(totals)
        bins = totals.shape[1]
        means = {
            f"train/loss_by_time/{number / bins:.3f}-{(number + 1) / bins:.3f}": loss / count
            for number, (loss, count) in enumerate(totals.T.tolist())
            if count > 0
        }
        # Not `module.log`: it would tell an empty bin's last value again and again.
        for logger in trainer.loggers:
            logger.log_metrics(means, step)
