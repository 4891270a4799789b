"""PSNR and SSIM against scikit-image, and no dependence on batches."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ldm.metrics.reconstruction import PSNR, SSIM, LearnedDistance, psnr, ssim


def pair(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.rand(count, 3, 24, 20, generator=generator) * 2 - 1
    noise = torch.randn(wanted.shape, generator=generator)
    strength = torch.linspace(0.01, 0.5, count)[:, None, None, None]
    return (wanted + strength * noise).clamp(-1, 1), wanted


def test_each_picture_equals_scikit_image() -> None:
    made, wanted = pair()
    for a, b, decibels, likeness in zip(
        made.numpy(), wanted.numpy(), psnr(made, wanted), ssim(made, wanted), strict=True
    ):
        assert float(decibels) == pytest.approx(
            peak_signal_noise_ratio(b, a, data_range=2), abs=1e-4
        )
        expected = structural_similarity(
            a.astype(np.float64),
            b.astype(np.float64),
            data_range=2,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1][:, 5:-5, 5:-5].mean()
        assert float(likeness) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_batches_do_not_matter(metric: type) -> None:
    made, wanted = pair(6)
    values = []
    for size in (1, 4, 6):
        number = metric()
        for a, b in zip(made.split(size), wanted.split(size), strict=True):
            number.update(a, b)
        values.append(float(number.compute()))
    assert values[0] == values[1] == values[2]


def test_equal_pictures_and_the_clamp() -> None:
    _, wanted = pair(2)
    metric = PSNR()
    metric.update(wanted, wanted)
    assert float(metric.compute()) == pytest.approx(100)
    beyond = PSNR()
    beyond.update(torch.full((1, 3, 16, 16), 7.0), torch.ones(1, 3, 16, 16))
    assert math.isclose(float(beyond.compute()), 100)
    assert float(ssim(wanted, wanted).min()) == pytest.approx(1)


def test_pictures_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="window of 11 pixels"):
        ssim(torch.zeros(1, 3, 8, 32), torch.zeros(1, 3, 8, 32))


class Darkness:
    """How much darker one picture is, which stands for a network's judgement."""

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (b - a).mean(dim=(1, 2, 3))

    def to(self, device: torch.device) -> "Darkness":
        return self


def test_a_learned_distance_is_the_mean_over_pictures() -> None:
    made, wanted = pair(5)
    metric = LearnedDistance(Darkness(), "darkness")
    for a, b in zip(made.split(2), wanted.split(2), strict=True):
        metric.update(a, b)
    expected = (wanted - made).double().mean()
    assert float(metric.compute()) == pytest.approx(float(expected), abs=1e-8)
