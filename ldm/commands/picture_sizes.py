"""Which pictures a first stage can be trained on, or can encode."""

import math

import torch
from omegaconf import DictConfig

from ldm.commands.building import build
from ldm.data.loading import Data
from ldm.models import Autoencoder

Size = tuple[int, int]  # height and width in pixels


def sizes_in(data: Data) -> list[Size]:
    """Those of a data set that has others than `image_size`."""
    return [shaped.shape for shaped in data.shaped() if shaped.shape is not None]


def refuse_undivided(sizes: list[Size], factor: int) -> None:
    """ValueError where the first stage's factor does not divide a size of the data's."""
    for height, width in sizes:
        if height % factor or width % factor:
            raise ValueError(
                f"data.train gives pictures of {height}x{width}, which the autoencoder's factor "
                f"{factor} does not divide; set data.train.multiple to a multiple of it"
            )


def refuse_pictures(config: DictConfig, autoencoder: Autoencoder, sizes: list[Size]) -> None:
    """ValueError where `image_size` or the data's own `sizes` do not suit the autoencoder or its
    critic: the critic joins late, and would end the training then."""
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
    refuse_undivided(sizes, factor)
    if not config.module.critic:
        return
    smallest, shrunken = 1.0, ""
    if config.module.equivariance:
        smallest = build(config.module.equivariance, "module.equivariance").smallest
        shrunken = ", a larger module.equivariance.smallest"
    with torch.device("meta"):
        critic = build(config.module.critic, "module.critic")
    for sides in sizes or [(size, size)]:
        least = [factor * math.ceil(smallest * side / factor) for side in sides]
        try:
            critic.fooled(torch.empty(1, 3, *least, device="meta"))
        except RuntimeError as error:
            raise ValueError(
                f"module.critic: its network does not take pictures of {least[0]}x{least[1]} pixels"
                f" ({' '.join(str(error).split())}); set fewer module.critic.network.layers"
                f"{shrunken} or a larger image_size"
            ) from error
