"""Which samples of a data set are used: decided once, from the index, before training."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    scores: Mapping[str, float] | None = None
    missing_caption: MissingCaption = "error"

    def __post_init__(self) -> None:
        if self.missing_caption not in ("error", "drop", "empty"):
            raise ValueError(
                f"data.keep.missing_caption is {self.missing_caption!r}; set error, drop or empty"
            )

        if self.min_side < 1 or self.max_pixels < 1:
            name = "min_side" if self.min_side < 1 else "max_pixels"
            raise ValueError(
                f"data.keep.{name} is {min(self.min_side, self.max_pixels)}; set 1 or more"
            )
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise ValueError(f"data.keep.max_aspect is {self.max_aspect}; set 1 or more, or null")
        for name, least in (self.scores or {}).items():
            if not isinstance(least, int | float):
                raise ValueError(f"data.keep.scores.{name} is {least!r}; set a number")

    def reaches(self, fields: Mapping[str, object]) -> bool:
        """Whether a sample's JSON fields have all `scores`."""
        for name, least in (self.scores or {}).items():
            value = fields.get(name)
            if not isinstance(value, int | float) or not value >= least:
                return False
        return True

    def fits(self, width: int, height: int) -> bool:
        """Whether a picture's sides are as `min_side` and `max_aspect` ask."""
        short, long = sorted((width, height))
        return short >= self.min_side and (
            self.max_aspect is None or long <= self.max_aspect * short
        )
