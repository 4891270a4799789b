"""Tiles equal the whole where a network sees no farther than a quarter of the overlap."""

import pytest
import torch
from torch import nn

from ldm.frozen import PUBLISHED, LatentCodec, LatentStatistics
from ldm.frozen.codec_tiles import in_tiles
from ldm.models import DeepCompressionAutoencoder


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
    assert torch.allclose(in_tiles(look, x, cell=1, out_cell=1, tile=16, overlap=4), x)
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


def test_a_picture_that_the_factor_does_not_divide_is_refused_in_tiles_as_in_whole() -> None:
    for tile in (None, 8):
        with pytest.raises(ValueError, match="67x68, which the autoencoder's factor 4 does not"):
            local_codec(tile).encode(torch.zeros(1, 3, 67, 68))


def test_impossible_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="tile=4 latent cells"):
        local_codec(4)
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
