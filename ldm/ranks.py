"""The processes that train together, in torch's default process group."""

import torch.distributed as distributed
from torch import Tensor


def together() -> bool:
    """There is a process group, if only of one."""
    return distributed.is_available() and distributed.is_initialized()


def count() -> int:
    """How many they are; 1 without a process group."""
    return distributed.get_world_size() if together() else 1


def add(*tensors: Tensor) -> None:
    """Each tensor becomes its sum over the ranks, in place; every rank must call it."""
    if count() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
