"""Tiles equal the whole: where a network sees no farther than the margin that is thrown away, and
where norms and attention see all of the picture."""

import pytest
import torch
from torch import nn

from ldm.frozen import PUBLISHED, LatentCodec, LatentStatistics, codec_whole
from ldm.frozen.codec_tiles import in_tiles
from ldm.models import Autoencoder, DeepCompressionAutoencoder, KLAutoencoder


def test_convolutions_in_tiles_equal_the_whole() -> None:
    torch.manual_seed(0)
    up = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.SiLU(), nn.ConvTranspose2d(6, 3, 4, stride=4)
    )
    down = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.SiLU(), nn.Conv2d(4, 2, 3, padding=1))
    for shape in ((1, 2, 40, 23), (2, 2, 16, 16), (1, 2, 17, 50)):
        latent = torch.randn(shape)
        with torch.no_grad():
            whole = up(latent)
            tiled = in_tiles(up, latent, cell=1, out_cell=4, tile=16, overlap=8)
            assert torch.allclose(tiled, whole, atol=1e-5)
            back = in_tiles(down, whole, cell=4, out_cell=1, tile=16, overlap=8)
            assert torch.allclose(back, down(whole), atol=1e-5)


def test_no_tile_is_larger_than_asked() -> None:
    seen = []

    def look(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape[2:])
        return part

    x = torch.randn(1, 1, 37, 90)
    assert torch.allclose(in_tiles(look, x, cell=1, out_cell=1, tile=16, overlap=8), x)
    assert set(seen) == {(16, 16)}


def local_codec(tile: int | None) -> LatentCodec:
    """Only convolutions, and norms of a position alone."""
    torch.manual_seed(0)
    network = DeepCompressionAutoencoder(
        latent_channels=4, widths=[8, 8], blocks=[1, 0], attention_levels=0, patch=2
    )
    return LatentCodec(network, LatentStatistics((0.1,) * 4, (2.0,) * 4, 4, None), tile=tile)


def test_a_tiled_codec_equals_the_whole_one_up_to_a_tile_and_beyond() -> None:
    whole, tiled = local_codec(None), local_codec(64)
    for size in (64 * 4, 100 * 4):
        image = torch.rand(1, 3, size, 60, generator=torch.Generator().manual_seed(0)) * 2 - 1
        latent = whole.encode(image)
        assert torch.allclose(tiled.encode(image), latent, atol=1e-5)
        assert torch.allclose(tiled.decode(latent), whole.decode(latent), atol=1e-5)


NETWORKS = {  # that see 9 cells far, but for norms and attention
    "norms": lambda: KLAutoencoder(
        latent_channels=4, width=8, multipliers=(1, 1), blocks=0, groups=4, middle_attention=False
    ),
    "attention": lambda: KLAutoencoder(
        latent_channels=4, width=8, multipliers=(1, 1), blocks=0, groups=4
    ),
    "linear attention": lambda: DeepCompressionAutoencoder(
        latent_channels=4, widths=[32, 32], blocks=[1, 1], attention_levels=1
    ),
}


def codec_of(network: Autoencoder, **options: int) -> LatentCodec:
    channels = network.latent_channels
    plain = LatentStatistics((0.0,) * channels, (1.0,) * channels, network.factor, None)
    return LatentCodec(network, plain, **options)


def lively(kind: str) -> Autoencoder:
    """A network whose norms and attention matter to its result, in float64."""
    torch.manual_seed(0)
    network = NETWORKS[kind]().double()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.bias)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
    return network


def uneven() -> torch.Tensor:
    """A picture with parts unlike each other: dark and bright, plain and noisy."""
    noise = torch.rand(1, 3, 100, 128, generator=torch.Generator().manual_seed(1)).double()
    return noise * torch.linspace(0, 1, 128) + torch.linspace(-1, 0, 100)[:, None]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, in deviations."""
    return float((a - b).abs().max() / b.std())


@pytest.mark.parametrize("kind", NETWORKS)
def test_norms_and_attention_see_the_whole_picture(kind, monkeypatch) -> None:
    network, image = lively(kind), uneven()
    with torch.no_grad():
        latent = network.encode(image).mean
        picture = network.expand(latent)

        def by(**options: int) -> tuple[float, float]:
            """How far a tiled codec's latent and picture are from the whole ones. What it hands
            out is float32 and clamped to the range of pictures: this is before."""
            codec = codec_of(network, **options)
            encoded = codec._posterior(image).mean
            decoded = codec._tiled(network.expand, latent, 1, network.factor)
            return distance(encoded, latent), distance(decoded, picture)

        assert min(by(tile=48, tile_passes=1)) > 0.05
        assert max(by(tile=48)) < 0.01
        monkeypatch.setattr(codec_whole, "STILL", 1e-9)
        assert max(by(tile=48)) < 1e-5  # results are float32


def test_a_plain_picture_whose_statistics_are_nothing_but_rounding_comes_to_an_end() -> None:
    codec = codec_of(lively("attention").float(), tile=16)
    plain = torch.full((2, 3, 48, 64), 0.3)
    whole = codec_of(codec.autoencoder).encode(plain)
    assert torch.allclose(codec.encode(plain)[:, :, 9:-9, 9:-9], whole[:, :, 9:-9, 9:-9], atol=0.1)


def test_a_picture_that_the_factor_does_not_divide_is_refused_in_tiles_as_in_whole() -> None:
    for tile in (None, 16):
        with pytest.raises(ValueError, match="67x68, which the autoencoder's factor 4 does not"):
            local_codec(tile).encode(torch.zeros(1, 3, 67, 68))


def test_impossible_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="tile=8 latent cells leave no room to overlap: set 16"):
        local_codec(8)
    with pytest.raises(ValueError, match="tile_passes=0"):
        codec_of(local_codec(None).autoencoder, tile=16, tile_passes=0)
    with pytest.raises(ValueError, match="tiles of 8 cells cannot share 8"):
        in_tiles(nn.Identity(), torch.zeros(1, 1, 9, 9), cell=1, out_cell=1, tile=8, overlap=8)


def test_published_numbers_scale_as_published() -> None:
    latent = torch.randn(2, 16, 1, 1)
    for name, scale, shift in (("sd3", 1.5305, 0.0609), ("flux", 0.3611, 0.1159)):
        record = PUBLISHED[name]
        mean, std = torch.tensor(record.mean), torch.tensor(record.std)
        normalised = (latent - mean[:, None, None]) / std[:, None, None]
        assert torch.allclose(normalised, (latent - shift) * scale, atol=1e-6)
    assert {name: (r.channels, r.factor) for name, r in PUBLISHED.items()} == {
        "sd": (4, 8),
        "sdxl": (4, 8),
        "sd3": (16, 8),
        "flux": (16, 8),
        "dc_ae_f32c32_in": (32, 32),
        "dc_ae_f64c128_in": (128, 64),
        "dc_ae_f32c32_sana": (32, 32),
    }
