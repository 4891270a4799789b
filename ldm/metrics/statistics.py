"""Making a `Reference` from a stream of pictures, in one pass and bounded memory."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from ldm.metrics.exact import halves, moments
from ldm.metrics.features import Features, to_bytes
from ldm.metrics.reference import Reference
from ldm.types import Image


def reference_statistics(
    features: Features, batches: Iterable[Tensor], keep: int | None = None
) -> Reference:
    """Mean and covariance over batches of pictures `[b 3 H W]` in [-1, 1], and the features of
    `keep` of the pictures (None: of all).

    Which are kept, like the rest, does not depend on the order of the pictures: they are those
    whose hashes are smallest, an even choice. ValueError for fewer than two pictures.
    """
    count, data = 0, 0
    total = outer = torch.zeros(())
    kept: list[tuple[int, Tensor]] = []
    for images in batches:
        with torch.no_grad():
            made = features(images)
        numbers = halves(made)
        total = total.to(numbers) + numbers.sum(0)
        outer = outer.to(numbers) + numbers.T @ numbers
        hashes = _hashes(images)
        count += len(images)
        data = (data + sum(hashes)) % 2**64
        kept += zip(hashes, made.cpu(), strict=True)
        kept = sorted(kept, key=lambda item: item[0])[:keep]
    mean, covariance = moments(count, total, outer)
    samples = torch.stack([row for _, row in kept]) if kept else None
    return Reference(features.name, count, mean.cpu(), covariance.cpu(), f"{data:016x}", samples)


def _hashes(images: Image) -> list[int]:
    """64 bits of each picture's bytes and size."""
    shape = str(tuple(images.shape[1:])).encode()
    return [
        int.from_bytes(hashlib.blake2b(picture.tobytes() + shape, digest_size=8).digest(), "big")
        for picture in to_bytes(images).cpu().numpy()
    ]
