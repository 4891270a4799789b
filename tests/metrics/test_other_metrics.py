"""Metrics that compare sets of features, each against a reference in NumPy or torch-fidelity."""

import numpy as np
import pytest
import torch
from known_features import Pixels, as_images
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ldm.metrics import (
    ClipDiscrepancy,
    Coverage,
    Density,
    Diversity,
    InceptionScore,
    KernelDistance,
    Memorisation,
    Precision,
    Recall,
    reference_statistics,
)

WIDTH = 8


def normal(count, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator) + shift


def reference_of(features, keep=None):
    return reference_statistics(Pixels(WIDTH), as_images(features).split(50), keep)


def value(metric, features, captions=None, batch=13):
    captions = captions or [""] * len(features)
    for start in range(0, len(features), batch):
        part = slice(start, start + batch)
        metric.update(as_images(features[part]), captions[part])
    return float(metric.compute())


def distances(a, b):
    return np.linalg.norm(a.double().numpy()[:, None] - b.double().numpy()[None], axis=2)


def test_kid_equals_torch_fidelity_on_one_subset_of_all():
    a, b = normal(120, 0, shift=0.3), normal(120, 1)
    theirs = kid_features_to_metric(
        a.double(),
        b.double(),
        kid_subsets=1,
        kid_subset_size=120,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=0,
        verbose=False,
    )["kernel_inception_distance_mean"]
    ours = value(KernelDistance(Pixels(WIDTH), reference_of(b)), a)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_kid_is_not_biased_by_few_pictures():
    """The mean over many small sets of one distribution is zero within four standard errors."""
    reference = reference_of(normal(100, 1))
    values = [
        value(KernelDistance(Pixels(WIDTH), reference_of(normal(10, 900 + i))), normal(10, i))
        for i in range(100)
    ]
    assert reference.count == 100
    assert abs(np.mean(values)) < 4 * np.std(values) / 10


def test_cmmd_equals_numpy():
    a, b = normal(60, 0, shift=0.5), normal(80, 1)
    x, y = (z.double().numpy() for z in (a, b))
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))

    def mean_kernel(p, q):
        squares = ((p[:, None] - q[None]) ** 2).sum(2)
        return np.exp(-squares / (2 * 10**2)).mean()

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert expected > 0.1
    ours = value(ClipDiscrepancy(Pixels(WIDTH), reference_of(b)), a)
    assert ours == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_inception_score_equals_torch_fidelity(spread):
    logits = normal(90, 0) * spread
    theirs = isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert value(InceptionScore(Pixels(WIDTH)), logits) == pytest.approx(theirs, rel=1e-6)


def test_inception_score_of_sure_and_evenly_spread_answers_is_their_number():
    logits = 200 * torch.eye(WIDTH).repeat(3, 1)
    assert value(InceptionScore(Pixels(WIDTH)), logits) == pytest.approx(WIDTH, rel=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_torch_fidelity(k):
    made, real = normal(150, 0, shift=0.7), normal(200, 1)
    theirs = prc_features_to_metric(
        made, real, prc_neighborhood=k, prc_batch_size=64, save_cpu_ram=False, verbose=False
    )
    reference = reference_of(real)
    assert 0.1 < theirs["precision"] < 0.9
    ours = value(Precision(Pixels(WIDTH), reference, k), made)
    assert ours == pytest.approx(theirs["precision"], abs=1e-7)  # theirs is float32
    ours = value(Recall(Pixels(WIDTH), reference, k), made)
    assert ours == pytest.approx(theirs["recall"], abs=1e-7)


def test_density_and_coverage_equal_numpy():
    made, real, k = normal(60, 0, shift=0.7), normal(80, 1), 5
    radii = np.sort(distances(real, real), axis=1)[:, k]
    between = distances(made, real)
    density = (between <= radii).sum() / (k * len(made))
    coverage = (between.min(axis=0) <= radii).mean()
    reference = reference_of(real)
    assert value(Density(Pixels(WIDTH), reference), made) == pytest.approx(density, abs=1e-12)
    assert value(Coverage(Pixels(WIDTH), reference), made) == pytest.approx(coverage, abs=1e-12)
    assert 0.1 < coverage < 0.9


def test_all_of_a_set_lies_within_itself():
    real = normal(50, 0)
    reference = reference_of(real)
    for metric in (Precision, Recall, Coverage):
        assert value(metric(Pixels(WIDTH), reference), real) == 1.0


@pytest.mark.parametrize("metric", [Precision, Recall, Density, Coverage])
def test_manifolds_say_how_many_pictures_they_need(metric):
    reference = reference_of(normal(50, 0))
    with pytest.raises(ValueError, match="needs 5 pictures or more, got 4"):
        value(metric(Pixels(WIDTH), reference, k=4), normal(4, 1))
    with pytest.raises(ValueError, match="6 single pictures or more, and the reference keeps 4"):
        metric(Pixels(WIDTH), reference_of(normal(50, 0), keep=4), k=5)
    with pytest.raises(ValueError, match="set k to 1 or more"):
        metric(Pixels(WIDTH), reference, k=0)


def test_memorisation_finds_planted_copies():
    training = normal(100, 0)
    training[1] = training[0]  # a duplicate must not hide its copies
    made = normal(40, 1)
    made[:10] = training[:10] + 0.01 * normal(10, 2)
    nearest = np.sort(distances(made, training[1:]), axis=1)
    expected = (nearest[:, 0] < nearest[:, 1] / 3).mean()
    assert expected == pytest.approx(10 / 40)
    assert value(Memorisation(Pixels(WIDTH), reference_of(training)), made) == expected


def test_memorisation_needs_every_training_picture():
    with pytest.raises(ValueError, match="100 single pictures or more, and the reference keeps 99"):
        Memorisation(Pixels(WIDTH), reference_of(normal(100, 0), keep=99))
    with pytest.raises(ValueError, match="set it between 0 and 1"):
        Memorisation(Pixels(WIDTH), reference_of(normal(100, 0)), ratio=1.0)
    with pytest.raises(ValueError, match="all training pictures of the reference are equal"):
        Memorisation(Pixels(WIDTH), reference_of(torch.ones(5, WIDTH)))


def test_diversity_equals_numpy():
    features = normal(12, 0)
    captions = list("aaabbbbcccda")
    unit = features.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    means = []
    for caption in "abc":
        rows = [i for i, c in enumerate(captions) if c == caption]
        means.append(np.mean([1 - unit[i] @ unit[j] for i in rows for j in rows if i != j]))
    ours = value(Diversity(Pixels(WIDTH)), features, captions, batch=5)
    assert ours == pytest.approx(np.mean(means), rel=1e-6)


def test_diversity_of_equal_pictures_is_zero_and_of_single_ones_undefined():
    equal = normal(1, 0).expand(6, -1)
    assert value(Diversity(Pixels(WIDTH)), equal, ["a"] * 6) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="draw several pictures a prompt"):
        value(Diversity(Pixels(WIDTH)), normal(3, 0), ["a", "b", "c"])


def test_statistics_equal_numpy_and_do_not_depend_on_order():
    features = normal(70, 0, shift=2.0)
    made = reference_of(features, keep=10)
    np.testing.assert_allclose(made.mean, features.double().numpy().mean(0), atol=1e-7)
    np.testing.assert_allclose(made.covariance, np.cov(features.double().numpy().T), atol=1e-6)
    again = reference_statistics(Pixels(WIDTH), as_images(features.flip(0)).split(9), keep=10)
    assert again.data == made.data
    assert torch.equal(again.mean, made.mean)
    assert torch.equal(again.covariance, made.covariance)
    assert torch.equal(again.samples, made.samples)
    assert len(made.samples) == 10


def test_statistics_tell_data_sets_apart():
    features = normal(70, 0)
    changed = features.clone()
    changed[3, 2] += 0.5
    assert reference_of(features).data != reference_of(changed).data


def test_statistics_of_one_picture_are_refused():
    with pytest.raises(ValueError, match=r"between 2 and .* pictures, got 1"):
        reference_of(normal(1, 0))
