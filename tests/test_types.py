"""Draws: the same numbers however the rows are spread, and independent streams."""

import pytest
import torch

from ldm.types import Condition, Draws, draws_for_seeds

CPU = torch.device("cpu")


def draws(rows, seed=3, step=7):
    return Draws(seed, step, rows, 8, CPU)


def test_rows_do_not_depend_on_who_holds_them():
    whole = draws(range(8)).normal((2, 3), "noise")
    parts = [draws(range(3)), draws([3]), draws(range(4, 8))]
    assert torch.equal(whole, torch.cat([part.normal((2, 3), "noise") for part in parts]))


def test_seed_step_row_and_stream_each_give_other_numbers():
    first = draws(range(8)).normal((4,), "noise")
    others = [
        draws(range(8), seed=4).normal((4,), "noise"),
        draws(range(8), step=8).normal((4,), "noise"),
        draws(range(1, 9)).normal((4,), "noise"),
        draws(range(8)).normal((4,), "time"),
    ]
    assert all((first != other).all() for other in others)


def test_numbers_over_many_rows_are_standard_normal_and_uncorrelated():
    x = Draws(0, 0, range(4000), 4000, CPU).normal((5,), "noise")
    assert x.mean(0).abs().max() < 4 / 4000**0.5
    assert (x.std(0) - 1).abs().max() < 4 / 8000**0.5
    neighbours = (x[1:] * x[:-1]).mean(0)
    assert neighbours.abs().max() < 4 / 4000**0.5


def test_shared_uniform_is_spread_over_the_unit_interval():
    values = torch.tensor([Draws(0, step, [0], 1, CPU).shared_uniform("t") for step in range(4000)])
    assert values.min() >= 0
    assert values.max() < 1
    assert torch.histc(values, 10, 0, 1).sub(400).abs().max() < 4 * 20


def test_a_seed_is_the_same_in_any_batch():
    one = draws_for_seeds([5], CPU).normal((3,), "start")
    assert torch.equal(draws_for_seeds([9, 5], CPU).normal((3,), "start")[1:], one)


@pytest.mark.parametrize("pooled", [True, False])
def test_condition_rows_are_chosen_and_joined(pooled):
    def condition(value):
        tokens = torch.full((2, 3, 4), value)
        extra = torch.full((2, 5), value) if pooled else None
        return Condition(tokens, torch.full((2, 3), value > 0), extra)

    mixed = condition(1.0).where(torch.tensor([True, False]), condition(0.0))
    assert mixed.tokens[:, 0, 0].tolist() == [1, 0]
    assert mixed.mask[:, 0].tolist() == [True, False]
    both = condition(1.0).cat(condition(0.0))
    assert len(both) == 4
    assert (both.pooled is None) == (not pooled)
    if pooled:
        assert mixed.pooled[:, 0].tolist() == [1, 0]
        assert both.pooled[:, 0].tolist() == [1, 1, 0, 0]


def test_a_row_may_be_one_number():
    assert draws(range(8)).uniform((), "dropout").shape == (8,)
