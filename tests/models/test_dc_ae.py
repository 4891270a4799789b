"""Shortcuts that need no learning, attention against its definition, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.models import DeepCompressionAutoencoder
from ldm.models.dc_ae import FoldDown, UnfoldUp, linear_attention


def silenced(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    return network


def test_without_convolutions_a_picture_of_equal_pixels_passes() -> None:
    x = torch.randn(2, 8, 1, 1).expand(2, 8, 6, 4)
    down = silenced(FoldDown(8, 16))(x)
    assert down.shape == (2, 16, 3, 2)
    back = silenced(UnfoldUp(16, 8))(down)
    assert torch.allclose(back, x, atol=1e-6)
    pooled = silenced(FoldDown(8, 8))(torch.randn(2, 8, 6, 4))
    assert pooled.shape == (2, 8, 3, 2)


def test_the_shortcut_keeps_the_mean_of_four_pixels() -> None:
    x = torch.randn(2, 8, 6, 4)
    assert torch.allclose(silenced(FoldDown(8, 8))(x), F.avg_pool2d(x, 2), atol=1e-6)


def test_linear_attention_equals_its_quadratic_form() -> None:
    query, key, value = torch.rand(3, 2, 4, 5, 7, dtype=torch.float64)
    weights = torch.einsum("bndi,bndj->bnij", query, key)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
    expected = torch.einsum("bnij,bndj->bndi", weights, value)
    assert torch.allclose(linear_attention(query, key, value), expected, atol=1e-9)


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    network = DeepCompressionAutoencoder(
        latent_channels=4, widths=[8, 16, 32], blocks=[1, 1, 1], attention_levels=1, patch=2
    )
    assert network.factor == 8
    image = torch.randn(2, 3, 16, 24)
    posterior = network.encode(image)
    assert posterior.mean.shape == (2, 4, 2, 3)
    assert posterior.std.abs().max() == 0
    (network.decode(posterior.mean) * torch.randn(2, 3, 16, 24)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_widths_without_a_shortcut_are_refused() -> None:
    with pytest.raises(ValueError, match="24 channels after 16"):
        DeepCompressionAutoencoder(latent_channels=4, widths=[16, 24], blocks=[1, 1])
    with pytest.raises(ValueError, match="3 channels after 32"):
        DeepCompressionAutoencoder(latent_channels=3, widths=[32], blocks=[1])
    with pytest.raises(ValueError, match=r"2 levels, autoencoder.blocks 1"):
        DeepCompressionAutoencoder(latent_channels=4, widths=[32, 32], blocks=[1])
