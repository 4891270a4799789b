"""What happens when a loss or a gradient is not a number any more, or the loss has jumped."""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ldm import ranks
from ldm.training.sharding import whole

ACTIONS = ("stop", "skip", "go_back")


class NonFiniteError(RuntimeError):
    """Training met a loss or a gradient that is not finite; the weights are still good."""


class NonFinitePolicy:
    """Keeps broken gradients from the weights: `stop` ends the training with an error; `skip`
    leaves the step out and warns, and ends after `patience` steps in a row; `go_back` then returns
    to an earlier checkpoint instead (see `Checkpointing`).

    Gradients are checked after ranks have averaged them, so that all ranks decide alike. Under fp16
    the losses of all ranks are: its scaler meets infinite gradients and skips them itself, but a
    loss that is not finite is no matter of scale.
    `lost_since` is the first step from which on nothing is worth keeping, `why` the reason.
    """

    def __init__(self, action: str, patience: int = 20) -> None:
        if action not in ACTIONS:
            raise ValueError(
                f"module.on_nonfinite={action!r} is none of {', '.join(ACTIONS)}: set one"
            )
        self.action, self.patience = action, patience
        self.skipped = 0
        self.in_a_row = 0
        self.lost_since: int | None = None
        self.why = ""
        self._seen: list[tuple[list[str], Tensor]] = []

    def watch(self, keys: list[str], losses: Float[Tensor, "b"]) -> None:
        """Remember who was in the step; nothing is read from the device."""
        self._seen.append((keys, losses.detach()))

    def guard(self, module: L.LightningModule) -> None:
        """Call before the optimizer's step."""
        seen, self._seen = self._seen, []
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients:
            return
        scaled = str(module.trainer.precision) == "16-mixed"
        if _finite_losses(seen) if scaled else _finite(gradients):
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        message = (
            f"step {module.global_step}: the {'loss is' if scaled else 'gradients are'} not "
            f"finite; {_names(seen)}; the weights were left as they are"
        )
        if self.action == "stop" or (self.action == "skip" and self.in_a_row >= self.patience):
            raise NonFiniteError(
                f"{message}. Look at these pictures, lower the learning rate or clip gradients; "
                "+module.on_nonfinite=skip leaves such steps out"
            )
        rank_zero_warn(message)
        if not scaled:  # the scaler leaves the step out, and needs the gradients to see that
            for parameter in module.parameters():
                parameter.grad = None
        if self.in_a_row >= self.patience:
            self.lose(
                module.global_step - self.in_a_row + 1,
                f"{self.in_a_row} steps in a row had gradients that are not finite",
            )

    def lose(self, since: int, why: str) -> None:
        """Nothing from this step on is worth keeping."""
        self.lost_since, self.why = since, why

    def found(self) -> None:
        """The training has gone back."""
        self.lost_since, self.in_a_row = None, 0

    def state_dict(self) -> dict[str, int]:
        """Counts, for a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """As if the training had never stopped."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def _finite(gradients: list[Tensor]) -> bool:
    return bool(torch.isfinite(whole(torch.nn.utils.get_total_norm(gradients))))


def _finite_losses(seen: list[tuple[list[str], Tensor]]) -> bool:
    """Those of all ranks."""
    broken = (~torch.isfinite(torch.cat([losses for _, losses in seen]))).sum()
    ranks.add(broken)
    return not bool(broken)


@dataclass
class Spikes:
    """Tells when the loss has jumped: `patience` logged steps in a row above `factor` times the
    median of the 20 logged before them (None: it is not watched). `action` is `warn`, `stop` or
    `go_back`.
    """

    factor: float | None = None
    patience: int = 3
    action: str = "warn"
    known: int = 20
    _usual: deque[float] = field(default_factory=deque, init=False)
    _high: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.action not in ("warn", "stop", "go_back"):
            raise ValueError(f"spikes.action={self.action!r}: set warn, stop or go_back")
        if self.factor is not None and self.factor <= 1:
            raise ValueError(f"spikes.factor={self.factor} is in every step; set 2.0, or null")

    def see(self, step: int, loss: float, policy: NonFinitePolicy) -> None:
        """A logged step's loss, the same on all ranks."""
        if self.factor is None or not math.isfinite(loss):
            return
        enough = len(self._usual) == self.known
        if not (enough and loss > self.factor * statistics.median(self._usual)):
            self._high.clear()
            self._usual.append(loss)
            if len(self._usual) > self.known:
                self._usual.popleft()
            return
        self._high.append(step)
        if len(self._high) < self.patience:
            return
        since, usual = self._high[0], statistics.median(self._usual)
        why = f"the loss jumped from {usual:.4g} to {loss:.4g} at step {since} and stayed there"
        self._high.clear()
        if self.action == "stop":
            raise NonFiniteError(f"{why}; lower the learning rate, or set spikes.action=go_back")
        if self.action == "go_back":
            policy.lose(since, why)
        else:
            rank_zero_warn(why)

    def state_dict(self) -> dict[str, list[Any]]:
        """What was seen, for a checkpoint."""
        return {"usual": list(self._usual), "high": list(self._high)}

    def load_state_dict(self, state: dict[str, list[Any]]) -> None:
        """As if the training had never stopped."""
        self._usual, self._high = deque(state["usual"]), list(state["high"])


def _names(seen: list[tuple[list[str], Tensor]]) -> str:
    """The keys whose own loss is not finite, or all when each loss was finite."""
    broken = [
        key
        for keys, losses in seen
        for key, fine in zip(keys, torch.isfinite(losses).tolist(), strict=True)
        if not fine
    ]
    if broken:
        return f"not finite on this rank: {', '.join(broken[:8])}"
    everyone = [key for keys, _ in seen for key in keys]
    return f"every loss on this rank was finite, of {', '.join(everyone[:8])}"
