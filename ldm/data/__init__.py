"""Tar shards in, batches out: the order is a pure function of (seed, epoch, position)."""

from ldm.data.batches import (
    OrderedBatches,
    all_pictures,
    normalise,
    training_batches,
    valid_pictures,
    validation_batches,
)
from ldm.data.buckets import BucketedData
from ldm.data.errors import DataError
from ldm.data.keep import Keep
from ldm.data.latent_data import LatentData
from ldm.data.latents import LatentBatch, condition_of, posterior_of
from ldm.data.mixed import MixedData
from ldm.data.reading import Reading
from ldm.data.shards import PictureBatch, ShardData

__all__ = [
    "BucketedData",
    "DataError",
    "Keep",
    "LatentBatch",
    "LatentData",
    "MixedData",
    "OrderedBatches",
    "PictureBatch",
    "Reading",
    "ShardData",
    "all_pictures",
    "condition_of",
    "normalise",
    "posterior_of",
    "training_batches",
    "valid_pictures",
    "validation_batches",
]
