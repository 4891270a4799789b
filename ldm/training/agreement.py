"""What all ranks must know at the same step: that one was told to stop, or cannot go on."""

from typing import Any

import torch
import torch.distributed as distributed

from ldm import ranks


class Agreement:
    """The largest of the ranks' numbers, over the CPU (gloo), so that no device is waited for.

    `tell` starts the exchange and gives the answer of the call before: at each step boundary the
    ranks learn what was told one boundary earlier, and nobody waits for the network.
    """

    def __init__(self) -> None:
        self._group: Any = None
        if ranks.count() > 1:
            self._group = distributed.new_group(backend="gloo")
        self._pending: tuple[torch.Tensor, Any] | None = None

    def tell(self, number: int) -> int:
        """Every rank calls it, equally often."""
        if self._group is None:
            return number
        last = 0
        if self._pending is not None:
            told, work = self._pending
            work.wait()
            last = int(told)
        told = torch.tensor(number)
        work = distributed.all_reduce(
            told, distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._pending = (told, work)
        return last

    def now(self, number: int) -> int:
        """The same at once; every rank waits."""
        if self._group is None:
            return number
        told = torch.tensor(number)
        distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self._group)
        return int(told)
