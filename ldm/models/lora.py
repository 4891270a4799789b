"""Low-rank adaptation (LoRA, arXiv 2106.09685): a few new numbers beside frozen weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LowRank(nn.Module):
    """A frozen linear layer and a trained difference of low rank: W + scale * up @ down.

    Starts as the layer itself, since `up` is zero. `down` is `[rank, in]`, `up` `[out, rank]`.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        if not 0 < rank <= min(base.in_features, base.out_features):
            raise ValueError(
                f"rank={rank} makes no low-rank difference of a {base.in_features} x "
                f"{base.out_features} layer: set 1 to {min(base.in_features, base.out_features)}"
            )
        self.base = base.requires_grad_(False)
        weight = base.weight
        self.down = nn.Parameter(weight.new_empty(rank, base.in_features).normal_(std=1 / rank))
        self.up = nn.Parameter(weight.new_zeros(base.out_features, rank))
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        """The frozen layer's, for those who ask a layer for its type."""
        return self.base.weight

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """As the layer that it stands for."""
        linear = nn.functional.linear
        difference = linear(linear(x, self.down), self.up)
        changed: Tensor = self.base(x) + self.scale * difference
        return changed


@dataclass(frozen=True)
class LowRankAdaptation:
    """Which layers are adapted, and how: `add_lora`'s arguments, for a configuration."""

    rank: int
    targets: Sequence[str]
    alpha: float | None = None

    def __call__(self, network: nn.Module) -> list[str]:
        """Freeze the network and put the differences into it; returns the adapted paths."""
        return add_lora(network, self.targets, rank=self.rank, alpha=self.alpha)


def add_lora(
    network: nn.Module, targets: Sequence[str], *, rank: int, alpha: float | None = None
) -> list[str]:
    """Freeze the network and put a low-rank difference beside every linear layer whose path fits
    one of `targets`, such as `*.qkv` or `blocks.3.*`; returns the paths.

    alpha: the difference is scaled by alpha / rank; `rank` where not given. ValueError for a
    target that no linear layer fits.
    """
    linears = {path: m for path, m in network.named_modules() if isinstance(m, nn.Linear)}
    chosen = [p for p in linears if any(fnmatchcase(p, pattern) for pattern in targets)]
    idle = [pattern for pattern in targets if not any(fnmatchcase(p, pattern) for p in linears)]
    if idle or not targets:
        raise ValueError(
            f"targets {idle} fit no linear layer: set patterns over paths such as "
            f"{next(iter(linears), 'none, for there are no linear layers')}"
        )
    network.requires_grad_(False)
    for path in chosen:
        scale = 1.0 if alpha is None else alpha / rank
        _replace(network, path, LowRank(linears[path], rank, scale))
    return chosen


def lora_layers(network: nn.Module) -> dict[str, LowRank]:
    """The low-rank layers by path."""
    return {path: m for path, m in network.named_modules() if isinstance(m, LowRank)}


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """What was trained: `PATH.down` and `PATH.up` of every low-rank layer."""
    return {
        f"{path}.{name}": value.detach()
        for path, layer in lora_layers(network).items()
        for name, value in (("down", layer.down), ("up", layer.up))
    }


@torch.no_grad()
def load_lora(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put trained differences into the layers that `add_lora` made; ValueError lists what does not
    fit, and nothing is loaded then."""
    own = lora_state(network)
    odd = sorted(own.keys() ^ state.keys())
    odd += [n for n in own.keys() & state.keys() if own[n].shape != state[n].shape]
    if odd:
        raise ValueError(f"these low-rank weights do not fit the network: {', '.join(odd)}")
    for name, value in state.items():
        own[name].copy_(value)


@torch.no_grad()
def merge_lora(network: nn.Module) -> None:
    """Add every difference into its layer: the plain network again, which computes the same."""
    for path, layer in lora_layers(network).items():
        merged = layer.base.weight.double() + layer.scale * (
            layer.up.double() @ layer.down.double()
        )
        layer.base.weight.copy_(merged)
        _replace(network, path, layer.base)
    network.requires_grad_(True)


def _replace(network: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, layer)
