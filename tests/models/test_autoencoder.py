"""Shapes, sizes and gradients of the autoencoders; published parameter counts; refusals."""

import itertools
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm.models import (
    Autoencoder,
    DeepCompressionAutoencoder,
    FiniteScalarQuantizer,
    KLAutoencoder,
    QuantisedAutoencoder,
    VectorQuantizer,
)

BARE = {"use_quant_conv": False, "use_post_quant_conv": False}
CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "autoencoder").glob("*.yaml"))


def built(name: str) -> Any:
    """A shipped configuration on the meta device."""
    path = next(path for path in CONFIGS if path.stem == name)
    with torch.device("meta"):
        return instantiate(yaml.safe_load(path.read_text()))


def size(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def as_diffusers(channels: list[int], latent: int, **settings: Any) -> int:
    with torch.device("meta"):
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            latent_channels=latent,
            layers_per_block=2,
            **settings,
        )
    return size(network)


@pytest.mark.parametrize(
    ("name", "channels", "latent", "settings"),
    [
        ("kl_f4", [128, 256, 512], 3, {}),
        ("kl_f8", [128, 256, 512, 512], 4, {}),
        ("sd3_f8c16", [128, 256, 512, 512], 16, BARE),
    ],
)
def test_sizes_equal_those_of_diffusers(
    name: str, channels: list[int], latent: int, settings: dict[str, bool]
) -> None:
    assert size(built(name)) == as_diffusers(channels, latent, **settings)


@pytest.mark.parametrize(("name", "millions"), [("kl_f4", 55.3), ("kl_f8", 83.7)])
def test_sizes_are_the_published_ones(name: str, millions: float) -> None:
    assert round(size(built(name)) / 1e6, 1) == millions


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_builds_and_keeps_its_shapes(path: Path) -> None:
    network: Autoencoder = built(path.stem)
    side = 2 * network.factor
    with torch.device("meta"):
        image = torch.zeros(1, network.image_channels, side, side)
        posterior = network.encode(image)
        made = network.eval().decode(posterior.mean)
    assert posterior.mean.shape == posterior.std.shape == (1, network.latent_channels, 2, 2)
    assert made.shape == image.shape


shapes = st.fixed_dictionaries(
    {
        "image_channels": st.integers(1, 5),
        "width": st.sampled_from([4, 8]),
        "multipliers": st.lists(st.integers(1, 2), min_size=1, max_size=3),
        "blocks": st.integers(1, 2),
        "patch": st.sampled_from([1, 2, 4]),
        "attention_levels": st.lists(st.integers(0, 2), max_size=1),
        "middle_attention": st.booleans(),
    }
)


@given(shape=shapes, latent=st.integers(1, 5), rows=st.integers(1, 2), columns=st.integers(1, 3))
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_shape_comes_back_and_gradient_reaches_every_parameter(
    shape: dict[str, Any], latent: int, rows: int, columns: int
) -> None:
    torch.manual_seed(0)
    count = len(shape["multipliers"])
    shape["attention_levels"] = [level for level in shape["attention_levels"] if level < count]
    network = KLAutoencoder(latent_channels=latent, groups=2, **shape)
    f = network.factor
    image = torch.randn(2, shape["image_channels"], rows * f, columns * f)
    posterior = network.encode(image)
    assert posterior.mean.shape == (2, latent, rows, columns)
    assert bool((posterior.std > 0).all())
    made = network.decode(posterior.sample(torch.randn(posterior.mean.shape)))
    assert made.shape == image.shape
    every_parameter_learns(network, made)


def every_parameter_learns(network: Autoencoder, made: torch.Tensor) -> None:
    (made * torch.randn(made.shape)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if not {"query", "key"} & set(name.split(".")):  # one place has nothing to choose
            assert float(parameter.grad.abs().max()) > 0, name


@given(
    shape=shapes,
    codes=st.one_of(
        st.tuples(st.integers(2, 40), st.integers(1, 5), st.booleans()),
        st.lists(st.integers(4, 8), min_size=2, max_size=4),
    ),
    rows=st.integers(2, 3),
    columns=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_shape_around_codes_as_well(
    shape: dict[str, Any], codes: tuple[int, int, bool] | list[int], rows: int, columns: int
) -> None:
    torch.manual_seed(0)
    if isinstance(codes, tuple):
        quantizer: Any = VectorQuantizer(codes[0], codes[1] + codes[2], cosine=codes[2])
    else:
        quantizer = FiniteScalarQuantizer(codes)
    count = len(shape["multipliers"])
    shape["attention_levels"] = [level for level in shape["attention_levels"] if level < count]
    network = QuantisedAutoencoder(quantizer, groups=2, **shape)
    f = network.factor
    image = torch.randn(2, shape["image_channels"], rows * f, columns * f)
    posterior = network.encode(image)
    assert posterior.mean.shape == (2, quantizer.channels, rows, columns)
    quantised = network.quantise(posterior.mean)
    assert quantised.codes.shape == (2, rows, columns)
    assert 0 <= int(quantised.codes.min()) <= int(quantised.codes.max()) < network.entries
    made = network.expand(quantised.latent)
    assert made.shape == image.shape
    every_parameter_learns(network, made)


@given(
    growth=st.lists(st.sampled_from([1, 2]), min_size=0, max_size=3),
    blocks=st.integers(1, 2),
    attending=st.integers(0, 2),
    patch=st.sampled_from([1, 2]),
    channels=st.integers(1, 4),
    latent=st.sampled_from([1, 4, 32]),
    columns=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_deep_compression_as_well(
    growth: list[int],
    blocks: int,
    attending: int,
    patch: int,
    channels: int,
    latent: int,
    columns: int,
) -> None:
    torch.manual_seed(0)
    widths = list(itertools.accumulate(growth, operator.mul, initial=32))
    network = DeepCompressionAutoencoder(
        latent_channels=latent,
        widths=widths,
        blocks=[blocks] * len(widths),
        attention_levels=attending,
        patch=patch,
        image_channels=channels,
    )
    f = network.factor
    assert f == patch * 2 ** len(growth)
    image = torch.randn(2, channels, f, columns * f)
    posterior = network.encode(image)
    assert posterior.mean.shape == (2, latent, 1, columns)
    made = network.decode(posterior.mean)
    assert made.shape == image.shape
    every_parameter_learns(network, made)


@pytest.mark.parametrize("quantizer", [VectorQuantizer(16, 3), FiniteScalarQuantizer([4, 3, 5])])
def test_codes_bound_what_the_decoder_reads(quantizer: Any) -> None:
    torch.manual_seed(0)
    network = QuantisedAutoencoder(quantizer, width=8, multipliers=(1, 2), blocks=1, groups=4)
    image = torch.rand(4, 3, 16, 16) * 2 - 1
    network.quantise(network.encode(image).mean)
    network.eval()
    codes = network.codes(image)
    assert codes.shape == (4, 8, 8)
    assert 0 <= int(codes.min()) <= int(codes.max()) < quantizer.entries
    rounded = network.quantise(network.encode(image).mean)
    again = network.quantise(rounded.latent)
    assert torch.equal(again.codes, codes)
    assert torch.allclose(again.latent, rounded.latent, atol=1e-6)
    made = network.train().decode(network.encode(image).mean)
    made.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 1, 16, 16), "images have 1 channels, the autoencoder takes 3: convert"),
        (torch.zeros(1, 3, 18, 16), "images are 18x16, .* factor 4 .* crop or resize to 16x16"),
        (torch.zeros(1, 3, 2, 16), "crop or resize to 4x16"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(image: torch.Tensor, message: str) -> None:
    network = KLAutoencoder(latent_channels=2, width=8, multipliers=(1, 1, 1), blocks=1, groups=4)
    with pytest.raises(ValueError, match=message):
        network.encode(image)


def test_levels_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"attention_levels names \[2\].* levels 0..1: name"):
        KLAutoencoder(
            latent_channels=2, width=8, multipliers=(1, 2), groups=4, attention_levels=[2]
        )
    with pytest.raises(ValueError, match=r"autoencoder.multipliers=\[\]: give one a level"):
        KLAutoencoder(latent_channels=2, width=8, multipliers=(), groups=4)


def test_widths_that_do_not_split_into_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"channels \[24\] do not split into 16 groups"):
        KLAutoencoder(latent_channels=2, width=24, multipliers=(1, 2), groups=16)
