"""Which of our tensors is which of theirs, so that one table serves both ways.

A link joins one tensor of ours with one or more of another project's. A `Table` is written once a
family and reads like a list of names; `give` turns our state into theirs, `take` theirs into ours
after comparing every name and shape, so that a checkpoint is loaded whole or not at all.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Link:
    """`give` makes their tensors of ours, `take` ours of theirs."""

    ours: str
    theirs: tuple[str, ...]
    give: Callable[[Tensor], list[Tensor]]
    take: Callable[[list[Tensor]], Tensor]


def _single(
    give: Callable[[Tensor], Tensor], take: Callable[[Tensor], Tensor]
) -> tuple[Callable[[Tensor], list[Tensor]], Callable[[list[Tensor]], Tensor]]:
    return (lambda ours: [give(ours)]), (lambda theirs: take(theirs[0]))


def _swap(value: Tensor) -> Tensor:
    first, second = value.chunk(2)
    return torch.cat([second, first])


class Table:
    """The links of one network, and what the other side holds beyond our weights.

    Every method names a module on both sides and joins whichever of weight and bias it has.
    """

    def __init__(self, network: nn.Module, without: Collection[str] = ()) -> None:
        self.shapes = {
            name: value.shape for name, value in network.state_dict().items() if name not in without
        }
        self.links: list[Link] = []
        self.constants: dict[str, Tensor] = {}  # theirs, computed and not learned
        self.unused: dict[str, Tensor] = {}  # theirs, without influence on what they compute

    def same(self, ours: str, theirs: str) -> None:
        """The same numbers under another name."""
        self._join(ours, theirs, *_single(lambda x: x, lambda x: x))

    def fused(self, ours: str, *theirs: str) -> None:
        """One of ours is theirs stacked, as q, k and v are."""
        for leaf in self._leaves(ours):
            self.stacked(f"{ours}.{leaf}", *(f"{name}.{leaf}" for name in theirs))

    def stacked(self, ours: str, *theirs: str) -> None:
        """A parameter of ours is theirs stacked; names of tensors, not of modules."""
        self.links.append(Link(ours, theirs, lambda x: list(x.chunk(len(theirs))), torch.cat))

    def pointwise(self, ours: str, theirs: str) -> None:
        """Our linear layer is their 1x1 convolution."""
        for leaf in self._leaves(ours):
            deeper = leaf == "weight"
            give, take = _single(
                (lambda x: x[..., None, None]) if deeper else (lambda x: x),
                (lambda x: x[..., 0, 0]) if deeper else (lambda x: x),
            )
            self.links.append(Link(f"{ours}.{leaf}", (f"{theirs}.{leaf}",), give, take))

    def embedded(self, ours: str, *theirs: str) -> None:
        """Our linear layer over one-hot vectors is their table, which they may hold in copies."""
        names = tuple(f"{name}.weight" for name in theirs)
        first = _all_equal(names)
        self.links.append(
            Link(f"{ours}.weight", names, lambda x: [x.T] * len(theirs), lambda x: first(x).T)
        )

    def swapped(self, ours: str, theirs: str) -> None:
        """Ours makes shift, then scale; theirs scale, then shift."""
        self._join(ours, theirs, *_single(_swap, _swap))

    def negated(self, ours: str, theirs: str) -> None:
        """The same numbers with the other sign."""
        self._join(ours, theirs, *_single(torch.neg, torch.neg))

    def repeated(self, ours: str, *theirs: str) -> None:
        """Ours is held once, theirs in equal copies."""
        for leaf in self._leaves(ours):
            names = tuple(f"{name}.{leaf}" for name in theirs)
            self.links.append(
                Link(f"{ours}.{leaf}", names, lambda x: [x] * len(theirs), _all_equal(names))
            )

    def turned(self, ours: str, theirs: str) -> None:
        """A parameter of ours is theirs transposed; names of tensors, not of modules."""
        self.links.append(Link(ours, (theirs,), *_single(lambda x: x.T, lambda x: x.T)))

    def _leaves(self, ours: str) -> list[str]:
        leaves = [leaf for leaf in ("weight", "bias") if f"{ours}.{leaf}" in self.shapes]
        assert leaves, ours
        return leaves

    def _join(
        self,
        ours: str,
        theirs: str,
        give: Callable[[Tensor], list[Tensor]],
        take: Callable[[list[Tensor]], Tensor],
    ) -> None:
        for leaf in self._leaves(ours):
            self.links.append(Link(f"{ours}.{leaf}", (f"{theirs}.{leaf}",), give, take))

    def give(self, state: State) -> dict[str, Tensor]:
        """Our state under their names; every tensor with memory of its own."""
        missed = self.shapes.keys() - {link.ours for link in self.links}
        assert not missed, f"no link for {sorted(missed)}"
        beside = self.constants | self.unused
        given = {name: value.clone() for name, value in beside.items()}
        for link in self.links:
            parts = link.give(state[link.ours])
            given |= {
                name: part.detach().clone(memory_format=torch.contiguous_format)
                for name, part in zip(link.theirs, parts, strict=True)
            }
        return given

    def take(self, theirs: State, source: str) -> dict[str, Tensor]:
        """Their state under our names. ValueError lists every tensor of `source` that is missing,
        unknown or of another shape; nothing is taken then."""
        self.compare(theirs, source)
        taken = {
            link.ours: link.take([theirs[name] for name in link.theirs]) for link in self.links
        }
        for name, value in self.constants.items():
            if name in theirs and not torch.allclose(theirs[name].float(), value, atol=1e-3):
                raise ValueError(f"{source}: {name} holds other numbers than its formula gives")
        return taken

    def compare(self, theirs: State, source: str) -> None:
        """ValueError names every difference between what `source` holds and what fits."""
        blank = {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}
        beside = self.constants | self.unused
        wanted = {name: value.shape for name, value in beside.items()}
        for link in self.links:
            parts = link.give(blank[link.ours])
            wanted |= {n: part.shape for n, part in zip(link.theirs, parts, strict=True)}
        missing = sorted(wanted.keys() - theirs.keys() - beside.keys())
        unknown = sorted(theirs.keys() - wanted.keys())
        misshapen = [
            f"{name} {list(theirs[name].shape)} instead of {list(wanted[name])}"
            for name in sorted(wanted.keys() & theirs.keys())
            if theirs[name].shape != wanted[name]
        ]
        faults = [
            f"{len(names)} {what}: {', '.join(names)}"
            for what, names in (
                ("missing", missing),
                ("unknown", unknown),
                ("of another shape", misshapen),
            )
            if names
        ]
        if faults:
            raise ValueError(f"{source} does not fit, and nothing was loaded; {'; '.join(faults)}")


def _all_equal(names: tuple[str, ...]) -> Callable[[list[Tensor]], Tensor]:
    def first(parts: list[Tensor]) -> Tensor:
        for name, part in zip(names, parts, strict=True):
            if not torch.equal(part, parts[0]):
                raise ValueError(f"{names[0]} and {name} differ, and we hold them once")
        return parts[0]

    return first
