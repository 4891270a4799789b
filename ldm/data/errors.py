"""What goes wrong with data once training runs."""

from dataclasses import dataclass


class DataError(RuntimeError):
    """Training cannot go on because of its data; the message says where and what to do."""


@dataclass(frozen=True)
class Fault:
    """One sample that could not be read, and was replaced by another."""

    kind: str
    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} | {self.shard}, key {self.key} | {self.reason}"
