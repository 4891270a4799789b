"""Bad input of `ldm shards make`: all of it looked at, then named together."""

import math
from dataclasses import dataclass, field

_NAMED = 5


@dataclass
class Losses:
    """Samples that cannot be read. A share of at most `tolerate` is left out, more is refused."""

    tolerate: float = 0.0
    count: int = 0
    named: list[str] = field(default_factory=list)  # the first of them, each with its reason

    def add(self, place: str, reason: object) -> None:
        """One more; `reason` is an error or its words."""
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append(f"{place}: {' '.join(str(reason).split()) or 'unreadable'}")

    def __str__(self) -> str:
        more = [f"and {self.count - len(self.named):,} more"] if self.count > _NAMED else []
        return " | ".join([*self.named, *more])

    def refuse(self, total: int, also: str = "") -> None:
        """ValueError where more than the tolerated share of `total` samples is lost."""
        if self.count <= self.tolerate * total:
            return
        share = math.ceil(self.count / total * 1e4) / 1e4
        way = f", or set --tolerate {share:g} to leave them out" if share < 1 else ""
        raise ValueError(
            f"{self.count:,} of {total:,} samples cannot be read | {self} | mend or remove them"
            f"{way}{also}"
        )
