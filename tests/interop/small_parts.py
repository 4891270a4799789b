"""The small networks of random weights that the interop tests carry over."""

import argparse

import torch

from ldm.frozen.clip import new_clip
from ldm.interop.first_stage import FirstStage
from ldm.interop.text import Tower
from ldm.models import KLAutoencoder, UNet
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


CLIP = {
    "embed_dim": 12,
    "vision": {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16},
    "text": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
STAGE = {"latent_channels": 4, "width": 32, "multipliers": [1, 2], "blocks": 1}
SHAPE = {
    "in_channels": 4,
    "text_width": 16,
    "channels": [64, 64],
    "depths": [0, 1],
    "heads": [1, 1],
    "attend_padding": True,
    "time_offset": -1.0,
}


def parsed(command, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(list(words))


def random_parts() -> tuple[UNet, FirstStage, Tower]:
    torch.manual_seed(0)
    network, autoencoder = UNet(**SHAPE).eval(), KLAutoencoder(**STAGE).eval()
    clip = new_clip(**CLIP)
    for module in (network, autoencoder):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
    return network, FirstStage(autoencoder, (0.1,) * 4, (2.0,) * 4), Tower(*clip)
