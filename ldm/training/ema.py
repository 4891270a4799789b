"""An exponential moving average of a network, kept as its twin."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def twin(network: M) -> M:
    """A frozen copy to hold the average. Shard it like the network, and it stays aligned."""
    return deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network, in one pass over all parameters.

    Buffers (a codebook's counts, a constant table) are copied: they are no result of the optimizer.
    """
    means: list[torch.Tensor] = list(average.parameters())
    news: list[torch.Tensor] = list(network.parameters())
    if len(means) != len(news):
        raise ValueError(
            f"the average has {len(means)} parameters, the network {len(news)}: "
            "make it with twin(network) after the network is complete"
        )
    torch._foreach_lerp_(means, news, 1 - decay)
    for kept, new in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(new)


def gradual_decay(decay: float, step: int) -> float:
    """`decay`, reached gradually: min(decay, (1 + step) / (10 + step)), so that the average of a
    short run is not held back by its first steps."""
    return min(decay, (1 + step) / (10 + step))
