"""Which pictures a first stage can be trained on."""

import math

import torch
from omegaconf import DictConfig

from ldm.commands.building import build
from ldm.models import Autoencoder


def refuse_pictures(config: DictConfig, autoencoder: Autoencoder) -> None:
    """ValueError where `image_size` suits the autoencoder or its critic not: the critic joins late,
    and would end the training then."""
    size, factor = config.image_size, autoencoder.factor
    if autoencoder.image_channels != 3:
        raise ValueError(
            f"autoencoder.image_channels={autoencoder.image_channels}: `data` gives pictures of 3; "
            "set 3, or train ldm.training.autoencoder from Python with pictures of your own"
        )
    if size % factor:
        raise ValueError(
            f"image_size={size} does not divide by the autoencoder's factor {factor}; "
            "set image_size to a multiple of it"
        )
    if not config.module.critic:
        return
    side, shrunken = size, ""
    if config.module.equivariance:
        smallest = build(config.module.equivariance, "module.equivariance").smallest
        side = factor * math.ceil(smallest * size / factor)
        shrunken = ", a larger module.equivariance.smallest"
    with torch.device("meta"):
        critic = build(config.module.critic, "module.critic")
        try:
            critic.fooled(torch.empty(1, 3, side, side))
        except RuntimeError as error:
            raise ValueError(
                f"module.critic: its network does not take pictures of {side} pixels "
                f"({' '.join(str(error).split())}); set fewer module.critic.network.layers"
                f"{shrunken} or a larger image_size"
            ) from error
