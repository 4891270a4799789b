"""Several caption encoders as one, and classes in place of captions."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from ldm.frozen.captions import CaptionEncoder
from ldm.frozen.fingerprints import text_fingerprint
from ldm.types import Condition


@runtime_checkable
class SeveralCaptions(CaptionEncoder, Protocol):
    """A caption encoder that is made of `leaves` ones."""

    leaves: int

    def apart(self, captions: Sequence[list[str]]) -> Condition:
        """Each encoder reads captions of its own."""


def leaves_of(encoder: CaptionEncoder) -> int:
    """How many encoders it is made of."""
    return encoder.leaves if isinstance(encoder, SeveralCaptions) else 1


def read_apart(encoder: CaptionEncoder, captions: Sequence[list[str]]) -> Condition:
    """What it says when each of the encoders it is made of reads captions of its own."""
    if isinstance(encoder, SeveralCaptions):
        return encoder.apart(captions)
    return encoder(captions[0])


class JoinedCaptions:
    """Several text encoders as one.

    join: "widths" puts token states side by side (SDXL; equal lengths), "tokens" one behind the
        other, each padded with zeros to the widest (SD3 puts its T5 behind its CLIPs so). Pooled
        vectors stand side by side.
    """

    def __init__(self, encoders: Sequence[CaptionEncoder], *, join: str) -> None:
        if join not in ("widths", "tokens"):
            raise ValueError(f"join={join!r} is not known: set 'widths' or 'tokens'")
        self.encoders = list(encoders)
        self.join = join
        widths = [encoder.width for encoder in self.encoders]
        self.width = sum(widths) if join == "widths" else max(widths)
        self.pooled_width = sum(encoder.pooled_width for encoder in self.encoders)
        self.leaves = sum(leaves_of(encoder) for encoder in self.encoders)

    def to(self, device: torch.device) -> None:
        """Move every encoder."""
        for encoder in self.encoders:
            encoder.to(device)

    def fingerprint(self) -> str:
        """Of all of them, in their order."""
        parts = [encoder.fingerprint() for encoder in self.encoders]
        return text_fingerprint((self.join, parts), {})

    def __call__(self, captions: list[str]) -> Condition:
        """Every encoder reads every caption."""
        return self.apart([captions] * self.leaves)

    def apart(self, captions: Sequence[list[str]]) -> Condition:
        """Each encoder reads captions of its own, one list for each of the `leaves`."""
        told, rest = [], list(captions)
        for encoder in self.encoders:
            count = leaves_of(encoder)
            mine, rest = rest[:count], rest[count:]
            told.append(read_apart(encoder, mine))
        vectors = [condition.pooled for condition in told if condition.pooled is not None]
        pooled = torch.cat(vectors, dim=1) if vectors else None
        if self.join == "tokens":
            padded = [
                torch.nn.functional.pad(c.tokens, (0, self.width - c.tokens.shape[2])) for c in told
            ]
            return Condition(
                torch.cat(padded, dim=1), torch.cat([c.mask for c in told], dim=1), pooled
            )
        if len({c.tokens.shape[1] for c in told}) > 1:
            raise ValueError(
                f"token states of lengths {[c.tokens.shape[1] for c in told]} do not stand side by "
                "side: give the encoders one length, or set join=tokens"
            )
        mask = torch.stack([c.mask for c in told]).any(dim=0)
        return Condition(torch.cat([c.tokens for c in told], dim=2), mask, pooled)


class ClassLabels:
    """Classes by name or number as a one-hot pooled vector, for networks that know `classes`.

    `names` may be how many there are, where they have numbers only. The last place, the number of
    classes, is "no class", which the empty caption means. There are no tokens.
    """

    width = 0

    def __init__(self, names: Sequence[str] | int) -> None:
        if isinstance(names, int):
            names = [str(number) for number in range(names)]
        self.names = {name: number for number, name in enumerate(names)}
        if len(self.names) != len(names):
            raise ValueError(f"{len(names)} class names, of which {len(self.names)} are different")
        self.pooled_width = len(names) + 1
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Later conditions come from there."""
        self.device = device

    def fingerprint(self) -> str:
        """Of the names, in their order."""
        return text_fingerprint(list(self.names), {})

    def __call__(self, captions: list[str]) -> Condition:
        """`pooled` is `[b classes+1]`. ValueError names a caption that is no class."""
        numbers = torch.tensor([self._number(caption) for caption in captions], device=self.device)
        pooled = torch.nn.functional.one_hot(numbers, self.pooled_width).float()
        rows = len(captions)
        return Condition(
            torch.zeros(rows, 0, 0, device=self.device),
            torch.zeros(rows, 0, dtype=torch.bool, device=self.device),
            pooled,
        )

    def _number(self, caption: str) -> int:
        if caption == "":
            return len(self.names)
        if caption in self.names:
            return self.names[caption]
        if caption.isdigit() and int(caption) < len(self.names):
            return int(caption)
        raise ValueError(
            f"{caption!r} is no class: captions must be one of the {len(self.names)} names, a "
            "number below that, or empty"
        )
