"""What the gallery's page asks for, and what it is shown. Imports nothing heavy."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image as Pictures

from ldm.commands.errors import choices_of


@dataclass(frozen=True)
class Wish:
    """One picture, as the page asks for it. ValueError names the field that cannot be."""

    prompt: str
    checkpoint: str
    sampler: str
    steps: int = 20
    guidance: float = 1.0
    seed: int = 0
    negative: str = ""

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, 1000), ("guidance", 0, 100), ("seed", 0, 2**53)):
            value = asdict(self)[name]
            if not (isinstance(value, int | float) and math.isfinite(value)):
                raise ValueError(f"{name}={value!r}: is no number; set one from {low} to {high}")
            if not low <= value <= high or (name != "guidance" and value != int(value)):
                raise ValueError(f"{name}={value!r}: set a number from {low} to {high}")
        for name in ("prompt", "negative", "checkpoint", "sampler"):
            text = asdict(self)[name]
            if not isinstance(text, str) or len(text) > 2000:
                raise ValueError(f"{name}: must be a text of at most 2000 characters")
        if self.sampler not in choices_of("sampler"):
            raise ValueError(
                f"sampler={self.sampler!r}: no such choice (there are: "
                f"{', '.join(choices_of('sampler'))})"
            )

    @staticmethod
    def of(fields: Any) -> "Wish":
        """What a page sent."""
        known = set(Wish.__dataclass_fields__)
        if not isinstance(fields, dict) or not {"prompt", "checkpoint", "sampler"} <= set(fields):
            raise ValueError("a wish needs prompt, checkpoint and sampler")
        if unknown := set(fields) - known:
            names = ", ".join(sorted(known))
            raise ValueError(f"{min(unknown)}: no such field (there are: {names})")
        wish = Wish(**fields)
        steps, seed = int(wish.steps), int(wish.seed)  # 20.0 and 20 are one wish
        return replace(wish, guidance=float(wish.guidance), steps=steps, seed=seed)


class Glimpse(NamedTuple):
    """What the picture looks like after so many passes of the network; `progress` is 1 - t."""

    passes: int
    progress: float
    picture: Pictures.Image


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
