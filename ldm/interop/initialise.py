"""Starting a training from weights that fit, or nearly fit, with an account of each tensor."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Account:
    """What became of each tensor, by name: taken as it was, taken in part (with its shape here and
    there), left fresh; and what the source had beyond that."""

    kept: tuple[str, ...]
    resized: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """One line a kind, all names but those of the tensors that were simply kept."""
        lines = [f"{len(self.kept)} tensors kept"]
        for what in ("resized", "fresh", "unused"):
            names: tuple[str, ...] = vars(self)[what]
            if names:
                lines.append(f"{len(names)} {what}: {', '.join(names)}")
        return "\n".join(lines)


@torch.no_grad()
def initialise(network: nn.Module, source: Mapping[str, Tensor]) -> Account:
    """Start a network from weights under its own names; returns what was taken.

    A tensor of another size is taken where both have numbers, and zero where only the network has
    them: a first convolution with more channels in then computes at first what it did before.
    ValueError where not one tensor fits, which means another architecture.
    """
    state = network.state_dict()
    kept: list[str] = []
    resized: dict[str, str] = {}
    for name in sorted(state.keys() & source.keys()):
        here, there = state[name], source[name]
        if here.shape == there.shape:
            here.copy_(there)
            kept.append(name)
        elif here.ndim == there.ndim:
            common = tuple(
                slice(0, min(ours, theirs))
                for ours, theirs in zip(here.shape, there.shape, strict=True)
            )
            here.zero_()
            here[common] = there[common].to(here.dtype)
            resized[name] = f"{name} {list(here.shape)} of {list(there.shape)}"
    taken = {*kept, *resized}
    if not kept:
        raise ValueError(
            "not one tensor of these weights fits the network: they belong to another architecture"
        )
    return Account(
        tuple(kept),
        tuple(resized.values()),
        tuple(sorted(state.keys() - taken)),
        tuple(sorted(source.keys() - taken)),
    )
