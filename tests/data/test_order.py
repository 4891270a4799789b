import numpy as np
import pytest

from ldm.data.order import ShuffledOrder
from ldm.data.random import permutation, uniforms


@pytest.mark.parametrize("window", [1, 5, 8, 1000])
def test_an_epoch_holds_every_sample_once(window):
    sizes = [7, 0, 1, 20, 5]
    order = ShuffledOrder(sizes, seed=3, window=window)
    for epoch in range(3):
        samples = order.rows(epoch * 33, 33).samples
        assert sorted(samples.tolist()) == list(range(33))


def test_any_position_is_found_without_walking_to_it():
    sizes = [50, 70, 30]
    whole = ShuffledOrder(sizes, seed=1, window=40).rows(0, 1000).samples
    rng = np.random.default_rng(0)
    for start in rng.integers(0, 900, 50).tolist():
        count = int(rng.integers(1, 100))
        part = ShuffledOrder(sizes, seed=1, window=40).rows(start, count)
        np.testing.assert_array_equal(part.samples, whole[start : start + count])
        np.testing.assert_array_equal(part.positions, np.arange(start, start + count))


def test_epochs_and_seeds_differ():
    first = ShuffledOrder([300], seed=0, window=100)
    other = ShuffledOrder([300], seed=1, window=100)
    assert not np.array_equal(first.rows(0, 300).samples, first.rows(300, 300).samples)
    assert not np.array_equal(first.rows(0, 300).samples, other.rows(0, 300).samples)


def test_a_window_reads_few_shards():
    order = ShuffledOrder([100] * 50, seed=0, window=400)
    touched = [len(set(order.rows(start, 400).samples // 100)) for start in range(0, 4800, 400)]
    assert max(touched) <= 5  # four shards make a window; a batch may lie across two


def test_a_large_shard_is_cut_so_that_windows_stay_bounded():
    order = ShuffledOrder([100_000], seed=0, window=1000)
    samples = order.rows(0, 1000).samples
    assert samples.max() - samples.min() < 1000  # one contiguous piece


def test_positions_are_uniform():
    """Where sample 0 lands, over many seeds: every tenth of the epoch equally often."""
    places = [
        int(np.flatnonzero(ShuffledOrder([40] * 5, seed, 80).rows(0, 200).samples == 0)[0])
        for seed in range(400)
    ]
    counts = np.bincount(np.array(places) // 20, minlength=10)
    assert ((counts - 40) ** 2 / 40).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_a_permutation_is_one():
    assert sorted(permutation(1, 2, length=1000).tolist()) == list(range(1000))


def test_uniform_numbers_are_uniform_and_streams_independent():
    first = uniforms(0, 1, counters=np.arange(20_000))
    second = uniforms(0, 2, counters=np.arange(20_000))
    assert abs(first.mean() - 0.5) < 4 * (1 / 12 / 20_000) ** 0.5
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / 20_000**0.5
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 4 / 20_000**0.5


def test_the_order_does_not_change_with_releases():
    """A resumed run needs the order that it began with, whatever NumPy is installed by then."""
    assert permutation(7, 1, length=8).tolist() == [0, 7, 5, 4, 6, 1, 2, 3]
