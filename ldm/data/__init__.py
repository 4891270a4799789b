"""Tar shards in, batches out: the order is a pure function of (seed, epoch, position)."""

from ldm.data.batches import normalise, training_batches, validation_batches
from ldm.data.keep import Keep
from ldm.data.reading import Reading
from ldm.data.shards import ShardData

__all__ = [
    "Keep",
    "Reading",
    "ShardData",
    "normalise",
    "training_batches",
    "validation_batches",
]
