import numpy as np
import pytest
import scipy.linalg
import torch
from known_features import Pixels, as_images
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from ldm.metrics import FrechetDistance, Reference, frechet_distance


def normal(count, width, seed, spread=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(count, width, generator=generator) @ mixing * spread + shift


def reference_of(features):
    numbers = features.double()
    return Reference(
        f"pixels-{features.shape[1]}", len(numbers), numbers.mean(0), numbers.T.cov(), "test"
    )


def scipy_distance(a, b):
    """The textbook formula with SciPy's matrix root, in float64."""
    a, b = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    means = a.mean(0) - b.mean(0)
    return means @ means + np.trace(cov_a + cov_b - 2 * root)


def distance(a, b, batch=64):
    metric = FrechetDistance(Pixels(a.shape[1]), reference_of(b))
    for part in as_images(a).split(batch):
        metric.update(part, [""] * len(part))
    return float(metric.compute())


def test_of_axis_aligned_gaussians():
    a, b = torch.tensor([1.0, 4.0]).double(), torch.tensor([9.0, 16.0]).double()
    zeros, ones = torch.zeros(2).double(), torch.ones(2).double()
    got = frechet_distance(zeros, a.diag(), ones, b.diag())
    torch.testing.assert_close(got, torch.tensor(2.0 + 4.0 + 4.0).double())


@pytest.mark.parametrize("count", [500, 60])
def test_equals_scipy_and_torch_fidelity(count):
    a, b = normal(count, 48, seed=0), normal(700, 48, seed=1, spread=1.3, shift=0.2)
    got = distance(a, b)
    stats = [fid_features_to_statistics(x.double()) for x in (a, b)]
    fidelity = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert got == pytest.approx(fidelity, rel=1e-6)
    assert got == pytest.approx(scipy_distance(a, b), rel=1e-6)


def test_fewer_pictures_than_features():
    """Two sets in orthogonal subspaces: the product of the covariances is zero, so the distance is
    the sum of the traces and of the means' distance."""
    a, b = torch.zeros(20, 64), torch.zeros(20, 64)
    a[:, :16], b[:, 32:48] = normal(20, 16, seed=0), normal(20, 16, seed=1)
    numbers = [x.double() for x in (a, b)]
    means = (numbers[0].mean(0) - numbers[1].mean(0)).square().sum()
    expected = means + sum(x.T.cov().trace() for x in numbers)
    assert distance(a, b) == pytest.approx(
        float(expected), rel=1e-7
    )  # features lie on a grid of 2.4e-7


def test_near_singular_covariances():
    """Commuting covariances with eigenvalues from 1 to 1e-12 have a closed form."""
    basis = torch.linalg.qr(normal(24, 24, seed=3).double())[0]
    a, b = torch.logspace(0, -12, 24).double(), torch.logspace(-12, 0, 24).double()
    zero = torch.zeros(24).double()
    got = frechet_distance(zero, basis @ a.diag() @ basis.T, zero, basis @ b.diag() @ basis.T)
    expected = (a.sqrt() - b.sqrt()).square().sum()
    assert float(got) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("count", [10, 300])
def test_of_a_set_to_itself_is_zero(count):
    a = normal(count, 32, seed=5)
    assert abs(distance(a, a)) < 1e-6 * float(a.double().T.cov().trace())


def test_grows_with_noise():
    a = normal(400, 16, seed=6)
    noise = normal(400, 16, seed=7)
    distances = [distance(a + level * noise, a) for level in (0.0, 0.1, 0.3, 1.0, 3.0)]
    assert distances == sorted(distances)
    assert distances[1] > distances[0] + 1e-4


def test_is_the_same_to_the_last_bit_for_any_batch_split_and_order():
    a, b = normal(101, 16, seed=8), normal(300, 16, seed=9)
    whole = distance(a, b, batch=101)
    assert all(distance(a, b, batch=size) == whole for size in (1, 7, 64))
    assert distance(a.flip(0), b, batch=10) == whole


def test_refuses_too_few_pictures():
    metric = FrechetDistance(Pixels(4), reference_of(normal(9, 4, seed=0)))
    metric.update(as_images(normal(1, 4, seed=1)), [""])
    with pytest.raises(ValueError, match="needs 2 pictures or more, got 1"):
        metric.compute()


def test_refuses_a_reference_of_other_features():
    with pytest.raises(ValueError, match=r"made with pixels-5 .* compared with pixels-4"):
        FrechetDistance(Pixels(4), reference_of(normal(9, 5, seed=0)))


def test_refuses_features_that_are_not_finite():
    metric = FrechetDistance(Pixels(4), reference_of(normal(9, 4, seed=0)))
    images = as_images(normal(3, 4, seed=1))
    images[1] = torch.nan
    with pytest.raises(ValueError, match="1 of 3 pictures outside"):
        metric.update(images, [""] * 3)
