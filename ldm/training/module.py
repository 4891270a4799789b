"""What the trainings of all stages share beside their losses."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ldm.training.clipping import ClipsByNetwork
from ldm.training.nonfinite import NonFinitePolicy
from ldm.training.sharding import FullySharded


class OneOptimizer(ClipsByNetwork):
    """One optimizer over everything that is trained, its learning rate set once a step; networks
    in parts where the strategy says so.

    `on_nonfinite` is what happens to steps whose gradients are not finite (`NonFinitePolicy`).
    `steps` are the methods in which networks are used, as `FullySharded.shard` asks.
    """

    steps: ClassVar[tuple[str, ...]] = ("training_step", "validation_step")

    def __init__(
        self,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        lr_schedule: Callable[[Optimizer], LRScheduler],
        on_nonfinite: str,
    ) -> None:
        super().__init__()
        self.optimizer, self.lr_schedule = optimizer, lr_schedule
        self.nonfinite = NonFinitePolicy(on_nonfinite)

    def configure_model(self) -> None:
        """Split the networks over the ranks."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FullySharded):
            strategy.shard(self, self.steps)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """A broken step reaches no weights."""
        self.nonfinite.guard(self)

    def configure_optimizers(self) -> Any:
        """Part of Lightning's interface."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        schedule = {"scheduler": self.lr_schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}
