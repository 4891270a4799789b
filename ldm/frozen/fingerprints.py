"""What tells frozen networks apart: their weights, and the settings that change what they say."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def text_fingerprint(settings: object, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the settings' repr and of the weights, whatever device they are on."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(flat.numpy()))  # type: ignore[arg-type]  # NumPy's buffers are
    return digest.hexdigest()
