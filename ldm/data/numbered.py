"""Samples of a set of shards, numbered: all that does not depend on what a sample is."""

from collections.abc import Iterator

from ldm.data.order import Order, Rows, Shaped, ShuffledOrder
from ldm.data.reading import Reading
from ldm.data.shard_set import ShardSet
from ldm.types import Condition


class Numbered:
    """The part of `Data` that pictures and latents share."""

    def __init__(self, shards: ShardSet, reading: Reading) -> None:
        self.set = shards
        self.reading = reading

    def __len__(self) -> int:
        return len(self.set)

    @property
    def content_hash(self) -> str:
        """Changes with any byte of any shard and with what is left out."""
        return self.set.content_hash

    @property
    def remote(self) -> bool:
        """Whether a shard has to be fetched before it can be read."""
        return self.set.ahead.remote

    def captions(self) -> Iterator[str]:
        """Every sample's default caption, in order, without its picture or latent."""
        return self.set.captions()

    def null_text(self) -> Condition | None:
        """What the text encoder says of the empty caption, where the shards hold text states."""
        return None

    def order(self, seed: int, global_batch: int) -> Order:
        """The training order, which does not depend on the batch. Latents come in the order of the
        pictures that they were made of, since their shards are of the same sizes."""
        return ShuffledOrder(self.set.sizes, seed, self.reading.window)

    def shaped(self) -> list[Shaped]:
        """All in one shape."""
        return [Shaped(None, range(len(self)))]

    def where(self, rows: Rows) -> list[str]:
        """The shards that hold these rows."""
        return self.set.where(rows.samples)

    def prefetch(self, rows: Rows) -> None:
        """Begins to fetch the shards of these rows, and returns at once."""
        self.set.ahead.want(self.set.shards(rows.samples))
