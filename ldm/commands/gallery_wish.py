"""What the gallery's page asks for, and what it is shown. Imports nothing heavy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image as Pictures

from ldm.commands.errors import choices_of

_NUMBERS = {"steps": (1, 1000), "guidance": (0, 100), "seed": (0, 2**53)}
_TEXTS = ("prompt", "checkpoint", "sampler", "negative")
_LONGEST = 2000  # characters of a text


@dataclass(frozen=True)
class Wish:
    """One picture."""

    prompt: str
    checkpoint: str
    sampler: str
    steps: int
    guidance: float
    seed: int
    negative: str = ""

    @staticmethod
    def of(fields: Any) -> "Wish":
        """What a page sent; ValueError names the field that cannot be."""
        wanted = set(Wish.__dataclass_fields__)
        if not isinstance(fields, Mapping) or wanted - {"negative"} - set(fields):
            raise ValueError(f"a wish has {', '.join(sorted(wanted))}")
        if unknown := set(fields) - wanted:
            raise ValueError(f"{min(unknown)}: no such field of {', '.join(sorted(wanted))}")
        for name, (low, high) in _NUMBERS.items():
            _refuse_number(name, fields[name], low, high)
        for name in _TEXTS:
            text = fields.get(name, "")
            if not isinstance(text, str) or len(text) > _LONGEST:
                raise ValueError(f"{name}: must be a text of at most {_LONGEST} characters")
        if fields["sampler"] not in choices_of("sampler"):
            names = ", ".join(choices_of("sampler"))
            raise ValueError(f"sampler={fields['sampler']!r}: no such choice (there are: {names})")
        return Wish(
            prompt=fields["prompt"],
            checkpoint=fields["checkpoint"],
            sampler=fields["sampler"],
            steps=int(fields["steps"]),
            guidance=float(fields["guidance"]),
            seed=int(fields["seed"]),
            negative=fields.get("negative", ""),
        )


def _refuse_number(name: str, value: Any, low: int, high: int) -> None:
    good = isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
    if not good or (name != "guidance" and value != int(value)):
        whole = "" if name == "guidance" else "whole "
        raise ValueError(f"{name}={value!r}: set a {whole}number from {low} to {high}")


class Glimpse(NamedTuple):
    """What the picture looks like after so many passes of the network; `progress` is 1 - t."""

    passes: int
    progress: float
    picture: Pictures.Image


@runtime_checkable
class Artist(Protocol):
    """Who draws for the page."""

    def offer(self) -> dict[str, Any]:
        """What can be chosen, and what to begin with."""

    def draw(self, wish: Wish, show: Callable[[Glimpse], None]) -> Pictures.Image:
        """The picture; `show` sees it form, and ends the drawing by raising."""

    def keep(self, wish: Wish) -> str:
        """Among the favourites; its name."""

    def favourites(self) -> list[dict[str, Any]]:
        """Name and wish of each, newest first."""

    def favourite(self, name: str) -> Path | None:
        """Its file; None where there is no such."""
