"""The latent contract: exact statistics, normalised latents, and refusals of what does not fit."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.frozen import LatentCodec, LatentStatistics, fingerprint, latent_statistics
from ldm.models import KLAutoencoder
from ldm.types import draws_for_seeds


def autoencoder(seed: int = 0) -> KLAutoencoder:
    torch.manual_seed(seed)
    network = KLAutoencoder(latent_channels=3, width=8, multipliers=(1, 2), blocks=1, groups=4)
    with torch.no_grad():  # an untrained encoder says little; make channels differ in scale
        network.to_moments.weight.mul_(torch.tensor([9.0, 3.0, 1.0] * 2)[:, None, None, None])
        network.to_moments.bias.add_(torch.tensor([5.0, -1.0, 0.0, -2.0, -3.0, -1.0]))
    return network


def images(count: int = 60, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_statistics_equal_those_of_all_latents_at_once() -> None:
    network, pictures = autoencoder(), images()
    found = latent_statistics(network, pictures.split(7))
    posterior = network.encode(pictures)
    vectors = posterior.mean.double().transpose(0, 1).flatten(1)
    own = posterior.std.double().square().mean(dim=(0, 2, 3))
    expected = torch.cov(vectors, correction=0) + torch.diag(own)
    assert torch.allclose(torch.tensor(found.mean).double(), vectors.mean(1), rtol=1e-5)
    assert torch.allclose(torch.tensor(found.covariance).double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(torch.tensor(found.std).double(), expected.diagonal().sqrt(), rtol=1e-5)
    assert (found.count, found.factor, found.channels) == (60, 2, 3)
    assert found.smallest == found.largest == (16, 16)


def test_drawn_latents_have_mean_0_and_std_1() -> None:
    network, pictures = autoencoder(), images(4000)
    codec = LatentCodec(network, latent_statistics(network, pictures.split(500)))
    latent = codec.encode(pictures, draws_for_seeds(range(4000), pictures.device))
    assert latent.mean(dim=(0, 2, 3)).abs().max() < 0.01
    assert (latent.std(dim=(0, 2, 3)) - 1).abs().max() < 0.01


def test_without_draws_the_posterior_mean_comes_back_as_the_autoencoder_decodes_it() -> None:
    network, pictures = autoencoder(), images(4)
    codec = LatentCodec(network, latent_statistics(network, [pictures]))
    with torch.no_grad():
        expected = network.decode(network.encode(pictures).mean).clamp(-1, 1)
    assert torch.allclose(codec.decode(codec.encode(pictures)), expected, atol=1e-5)
    assert codec.latent_shape(16) == tuple(codec.encode(pictures).shape[1:])


def test_the_record_survives_its_file(tmp_path: Path) -> None:
    network = autoencoder()
    record = latent_statistics(network, [images(4)])
    record.save(tmp_path / "latents.json")
    assert LatentStatistics.load(tmp_path / "latents.json") == record
    assert [file.name for file in tmp_path.iterdir()] == ["latents.json"]


@pytest.mark.parametrize("text", ["", "[1]", '{"mean": [0.0]}', '{"unknown": 1}'])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "latents.json").write_text(text)
    with pytest.raises(ValueError, match=r"latents.json is no record of latent statistics"):
        LatentStatistics.load(tmp_path / "latents.json")


def test_a_codec_refuses_what_was_measured_on_another_encoder() -> None:
    network = autoencoder()
    record = latent_statistics(network, [images(4)])
    with pytest.raises(ValueError, match="measured with other weights"):
        LatentCodec(autoencoder(seed=1), record)
    with pytest.raises(ValueError, match="a factor of 2, its latent statistics 4"):
        LatentCodec(network, dataclasses.replace(record, factor=4))
    with pytest.raises(ValueError, match="latent channels 3, its latent statistics 2"):
        LatentCodec(network, dataclasses.replace(record, mean=(0.0, 0.0), std=(1.0, 1.0)))


def test_the_fingerprint_is_of_the_encoder_alone_and_of_every_number_in_it() -> None:
    network = autoencoder()
    before = fingerprint(network)
    nn.init.zeros_(network.decoder.conv_out.weight)
    assert fingerprint(network) == before
    bias = network.encoder.middle[0].conv1.bias
    with torch.no_grad():
        bias[0] = torch.nextafter(bias[0], torch.tensor(9.0))
    assert fingerprint(network) != before


def test_channels_without_spread_and_broken_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latent channels \[1\] have no spread"):
        LatentStatistics((0.0, 0.0), (1.0, 0.0), 8, None)
    with pytest.raises(ValueError, match="2 means and 1 standard deviations: set one of each"):
        LatentStatistics((0.0, 0.0), (1.0,), 8, None)
    for mean, std in ((math.nan, 1.0), (math.inf, 1.0), (0.0, math.inf), (0.0, math.nan)):
        with pytest.raises(ValueError, match=r"latent channels \[1\] have no finite mean and std"):
            LatentStatistics((0.0, mean), (1.0, std), 8, None)
    network = autoencoder()
    nn.init.constant_(network.to_moments.bias, float("nan"))
    with pytest.raises(ValueError, match="latents that are not finite"):
        latent_statistics(network, [images(4)])
    with pytest.raises(ValueError, match="there are no pictures"):
        latent_statistics(autoencoder(), [])


def test_a_record_that_cannot_normalise_is_refused_with_its_file(tmp_path: Path) -> None:
    text = '{"mean": [0.0], "std": [NaN], "factor": 8, "fingerprint": null}'
    (tmp_path / "latents.json").write_text(text)
    with pytest.raises(ValueError, match=r"latents\.json: latent channels \[0\] have no finite"):
        LatentStatistics.load(tmp_path / "latents.json")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_broken_picture_is_not_blamed_on_the_checkpoint(value: float) -> None:
    pictures = images(9)
    pictures[6, 1, 3, 3] = value
    with pytest.raises(ValueError, match=r"picture 6 \(counted from 0\) has pixels that are not"):
        latent_statistics(autoencoder(), pictures.split(4))


def test_a_side_that_the_factor_does_not_divide_is_refused() -> None:
    network = autoencoder()
    codec = LatentCodec(network, latent_statistics(network, [images(4)]))
    with pytest.raises(ValueError, match="image_size=17 does not divide"):
        codec.latent_shape(17)
