"""Which samples of a data set are used: decided once, from the index, before training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

MissingCaption = Literal["error", "drop", "empty"]


@dataclass(frozen=True)
class Keep:
    """Samples whose short side has at least `min_side` pixels, whose sides differ at most by the
    factor `max_aspect`, that have at most `max_pixels`, and whose JSON fields reach the `scores`.

    A sample without a caption is an error, is left out (`drop`), or has the caption ""(`empty`).
    """

    min_side: int = 1
    max_aspect: float | None = None
    max_pixels: int = 64_000_000
    scores: Mapping[str, float] = field(default_factory=dict)
    missing_caption: MissingCaption = "error"

    def __post_init__(self) -> None:
        if self.missing_caption not in ("error", "drop", "empty"):
            raise ValueError(
                f"keep.missing_caption is {self.missing_caption!r}; set error, drop or empty"
            )
