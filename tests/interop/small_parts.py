"""The small networks of random weights that the interop tests carry over."""

import torch

from ldm.models import KLAutoencoder
from ldm.types import Condition

MEAN, STD = (0.3, -0.2, 0.1, 0.0), (0.5, 1.5, 2.0, 1.0)  # of the autoencoder's latents


def randomise(network: torch.nn.Module, seed: int = 0) -> None:
    """Weights that keep activations near one, whatever the width; no layer stays zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape) * scale)


def autoencoder(**changes) -> KLAutoencoder:
    arguments = {"latent_channels": 4, "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
    network = KLAutoencoder(**(arguments | changes)).eval()
    randomise(network)
    return network


def classes(*numbers: int, count: int = 6) -> Condition:
    """The last of `count` is "no class"."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(numbers), count).float()
    rows = len(numbers)
    return Condition(torch.zeros(rows, 0, 0), torch.ones(rows, 0, dtype=torch.bool), one_hot)
