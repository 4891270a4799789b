"""Signals whose spectrum is known, codes whose entropy is known; batches do not matter."""

import math

import pytest
import torch

from ldm.metrics.latents import ChannelKL, CodebookUse, HighFrequencyShare


def share(latent: torch.Tensor) -> float:
    metric = HighFrequencyShare(latent.shape[1])
    metric.update(latent)
    return float(metric.compute())


def test_waves_are_told_apart() -> None:
    place = torch.arange(16.0)
    slow, fast = torch.cos(2 * math.pi * 2 * place / 16), torch.cos(2 * math.pi * 6 * place / 16)
    assert share(slow.expand(2, 3, 16, 16) + 7) == pytest.approx(0, abs=1e-9)
    assert share(fast.expand(2, 3, 16, 16) + 7) == pytest.approx(1, abs=1e-9)
    assert share((slow + fast).expand(1, 1, 16, 16)) == pytest.approx(0.5, abs=1e-6)


def test_white_noise_has_the_share_of_its_frequencies() -> None:
    noise = torch.randn(200, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    low = 9 * 9 - 1  # |f| <= 1/4 in both directions, without the mean
    assert share(noise) == pytest.approx(1 - low / 255, abs=0.01)


def test_a_loud_channel_does_not_drown_the_others() -> None:
    noise = torch.randn(50, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert share(noise) == pytest.approx(
        share(noise * torch.tensor([1.0, 8.0])[:, None, None]), abs=1e-6
    )


def test_codes_counted() -> None:
    metric = CodebookUse(8)
    for codes in torch.tensor([0, 1, 2, 3] * 6).view(6, 2, 2).split(4):
        metric.update(codes)
    found = metric.compute()
    assert float(found["used"]) == 0.5
    assert float(found["perplexity"]) == pytest.approx(4)


def test_batches_do_not_matter() -> None:
    nats = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    values = []
    for size in (1, 5, 12):
        metric = ChannelKL(3)
        for batch in nats.split(size):
            metric.update(batch)
        values.append(metric.compute())
    assert torch.allclose(values[0], nats.double().mean(dim=(0, 2, 3)), atol=1e-8)
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
