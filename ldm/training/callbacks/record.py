"""What a step leaves in the record besides its module's own numbers.

Everything stays on the device until a step that is logged: in between, the host waits for nothing.
"""

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
import torch.distributed as distributed
from torch import Tensor
from torch.optim import Optimizer

from ldm import ranks
from ldm.runs.attempts import Attempts
from ldm.training.nonfinite import NonFinitePolicy, Spikes


class StepRecord(L.Callback):
    """Loss over all ranks and turns (mean, max), gradient norms before clipping, learning rate,
    percentiles of the step time, memory, and the share of the run's life spent training. `spikes`
    sees the loss."""

    def __init__(self, attempts: Attempts, spikes: Spikes) -> None:
        self.attempts, self.spikes = attempts, spikes
        self._losses: list[Tensor] = []
        self._seconds: list[float] = []
        self._at = self._began = self._useful = 0.0
        self._restarts, self._lost = 0, 0.0
        self._rate = 0.0
        self._nonfinite: NonFinitePolicy

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        """Remember who counts what is not finite."""
        self._nonfinite = module.nonfinite

    def state_dict(self) -> dict[str, Any]:
        """What the guards have counted."""
        return {"spikes": self.spikes.state_dict(), "nonfinite": self._nonfinite.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As if the training had never stopped."""
        self.spikes.load_state_dict(state_dict["spikes"])
        self._nonfinite.load_state_dict(state_dict["nonfinite"])

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What earlier starts of this run have cost."""
        self._at = self._began = time.monotonic()
        self._restarts, self._lost = self.attempts.lost() if trainer.is_global_zero else (0, 0.0)

    def on_train_batch_start(self, *_: Any) -> None:
        """Validation and samples do not count as the step's time."""
        if not self._losses:
            self._at = time.monotonic()

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Optimizer) -> None:
        """The rate that this step uses; afterwards the schedule has moved on."""
        self._rate = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        """Remember; at a step that is logged, log."""
        self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if len(self._losses) < trainer.accumulate_grad_batches:
            return
        losses, self._losses = torch.stack(self._losses), []
        self._seconds.append(time.monotonic() - self._at)
        self._useful += self._seconds[-1]
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            module.log_dict(self._measured(trainer, module, losses))
            self._seconds.clear()

    def _measured(self, trainer: L.Trainer, module: Any, losses: Tensor) -> dict[str, Any]:
        mean, largest = over_ranks(losses)
        self.spikes.see(trainer.global_step, float(mean), module.nonfinite)
        values: dict[str, Any] = {"train/loss_mean": mean, "train/loss_max": largest}
        for name, norm in module.gradient_norms.items():
            values[f"grad/{name}"] = norm
        values["train/lr"] = self._rate
        seconds = sorted(self._seconds)
        for percent in (50, 95):
            values[f"time/step_p{percent}"] = seconds[(len(seconds) - 1) * percent // 100]
        alive = time.monotonic() - self._began + self._lost
        values["time/goodput"] = self._useful / alive
        values["time/restarts"] = float(self._restarts)
        values["memory/process_gib"] = resident_gib()
        device = trainer.strategy.root_device
        if device.type == "cuda":
            values["memory/peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            values["memory/reserved_gib"] = torch.cuda.memory_reserved(device) / 2**30
        return values


def resident_gib() -> float:
    """The most memory that this process has held at once."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def over_ranks(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum of all ranks' values, of which each has as many."""
    mean, largest = losses.mean(), losses.max()
    if (world := ranks.count()) > 1:
        ranks.add(mean)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        mean /= world
    return mean, largest
