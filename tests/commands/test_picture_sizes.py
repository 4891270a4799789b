"""Pictures that do not suit a first stage are refused before it is trained."""

import pytest
import torch

from ldm.commands.building import build
from ldm.commands.composing import composed
from ldm.commands.picture_sizes import refuse_pictures, refuse_undivided


def refusal(sizes, *words):
    config = composed(["experiment=emoji/autoencoder", "autoencoder=tiny", *words])
    with torch.device("meta"):
        autoencoder = build(config.autoencoder, "autoencoder")
    with pytest.raises(ValueError, match="; set ") as error:
        refuse_pictures(config, autoencoder, sizes)
    return str(error.value)


def test_sizes_that_the_factor_does_not_divide_are_refused():
    assert "image_size=60 does not divide by the autoencoder's factor 8" in refusal(
        [], "image_size=60"
    )
    said = refusal([(64, 64), (56, 76)])
    assert "data.train gives pictures of 56x76" in said
    assert "factor 8" in said
    assert "set data.train.multiple" in said
    refuse_undivided([(64, 64), (56, 80)], 8)


def test_pictures_of_another_number_of_channels_are_refused():
    assert "autoencoder.image_channels=1" in refusal([], "+autoencoder.image_channels=1")


@pytest.mark.parametrize(
    ("sizes", "words", "size"),
    [
        ([], ["image_size=16"], "16x16"),
        ([(64, 64), (64, 16)], [], "64x16"),
        (
            [],
            ["module.equivariance={_target_: ldm.models.Equivariance, smallest: 0.2}"],
            "16x16",
        ),
    ],
)
def test_pictures_that_are_too_small_for_the_critic_are_refused(sizes, words, size):
    said = refusal(sizes, *words, "critic=patch")
    assert f"module.critic: its network does not take pictures of {size} pixels" in said
    assert "module.critic.network.layers" in said
