"""Gradient clipping that a fused optimizer does not rule out."""

from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm.training.sharding import whole


class ClipsByNetwork(L.LightningModule):
    """Clips the gradient norm of each child network on its own, as optimizers of their own would.

    Lightning refuses to clip for a fused optimizer under mixed precision, because that unscales
    fp16 gradients inside its step. bf16 gradients are never scaled; fp16 is left to Lightning.
    `gradient_norms` are those of the last step before clipping, by child, on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gradient_norms: dict[str, Tensor] = {}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Part of Lightning's interface; `gradient_clip_val` is the largest norm."""
        if self.trainer.precision == "16-mixed":
            arguments: Any = (optimizer, gradient_clip_val, gradient_clip_algorithm)
            super().configure_gradient_clipping(*arguments)
            return
        for name, network in self.named_children():
            trained = [p for p in network.parameters() if p.grad is not None]
            if not trained:
                continue
            norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
            if gradient_clip_val is not None:
                nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, norm)
            self.gradient_norms[name] = whole(norm)
