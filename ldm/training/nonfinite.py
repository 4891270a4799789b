"""What happens when a loss or a gradient is not a number any more."""

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ldm.training.sharding import whole


class NonFiniteError(RuntimeError):
    """Training met a loss or a gradient that is not finite; the weights are still good."""


class NonFinitePolicy:
    """Keeps broken gradients from the weights: `stop` ends the training with an error, `skip`
    leaves the step out and warns, up to `patience` steps in a row.

    Gradients are checked after ranks have averaged them, so that all ranks decide alike. They are
    not checked under fp16, whose scaler meets infinities and skips them itself.
    """

    def __init__(self, action: str, patience: int = 20) -> None:
        if action not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite={action!r} is neither 'stop' nor 'skip': set one")
        self.action, self.patience = action, patience
        self.skipped = 0
        self.in_a_row = 0
        self._seen: list[tuple[list[str], Tensor]] = []

    def watch(self, keys: list[str], losses: Float[Tensor, "b"]) -> None:
        """Remember who was in the step; nothing is read from the device."""
        self._seen.append((keys, losses.detach()))

    def guard(self, module: L.LightningModule) -> None:
        """Call before the optimizer's step."""
        seen, self._seen = self._seen, []
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if str(module.trainer.precision) == "16-mixed" or not gradients:
            return
        if bool(torch.isfinite(whole(torch.nn.utils.get_total_norm(gradients)))):
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        message = (
            f"step {module.global_step}: the gradients are not finite; {_names(seen)}; "
            "the weights were left as they are"
        )
        if self.action == "stop" or self.in_a_row >= self.patience:
            raise NonFiniteError(
                f"{message}. Look at these pictures, lower the learning rate or clip gradients; "
                "on_nonfinite=skip leaves such steps out"
            )
        rank_zero_warn(message)
        for parameter in module.parameters():
            parameter.grad = None


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
