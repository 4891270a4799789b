"""Sums that no order can change.

A float64 holds every integer up to 2^53, so a sum of integers below that is exact, and an exact sum
is the same for any batch size, any order and any number of ranks, to the last bit. Features are
rounded to a grid of 2^-22 (2.4e-7, about float32's own resolution near 1) and are then integers of
32 bits. Their products have 64 bits, too many; so each is cut into two halves of 16 bits, whose
products have 32 and may be summed two million times.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GRID = 2.0**22
_LIMIT = 2.0**9  # features lie within +-512
_HALF = 2.0**16
COUNT_LIMIT = 2**21  # 2^21 products of two halves, each below 2^32, stay below 2^53


def halves(features: Float[Tensor, "b d"]) -> Float[Tensor, "b 2*d"]:
    """Features as integers: the upper 16 bits of all columns, then the lower 16 bits of all.

    Raises ValueError where a feature is not finite or lies outside +-512.
    """
    numbers = features.double()
    inside = (numbers.abs() < _LIMIT).all(dim=1)  # false for NaN as well
    if not bool(inside.all()):
        raise ValueError(
            "features must be finite and within +-512 to be summed exactly, "
            f"got {int((~inside).sum())} of {len(features)} pictures outside: "
            "look at the pictures for NaN, or scale the features"
        )
    numbers = (numbers * _GRID).round()
    upper = (numbers / _HALF).round()
    return torch.cat([upper, numbers - upper * _HALF], dim=1)


def moments(
    count: int, total: Float[Tensor, "d2"], outer: Float[Tensor, "d2 d2"]
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Mean and unbiased covariance from the sums of `halves` and of their outer products."""
    if not 2 <= count <= COUNT_LIMIT:
        raise ValueError(
            f"a covariance needs between 2 and {COUNT_LIMIT} pictures, got {count}: "
            "give another number of pictures"
        )
    upper, lower = total.chunk(2)
    mean = (upper * _HALF + lower) / (_GRID * count)
    (upper_upper, upper_lower), (lower_upper, lower_lower) = (
        row.chunk(2, dim=1) for row in outer.chunk(2)
    )
    products = (upper_upper * _HALF + (upper_lower + lower_upper)) * _HALF + lower_lower
    return mean, (products / _GRID**2 - count * mean.outer(mean)) / (count - 1)


def on_grid(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Values rounded to multiples of 2^-30: their float64 sums are exact while below 2^23."""
    return (values.double() * 2.0**30).round() / 2.0**30


def fixed_order(features: Float[Tensor, "n d"]) -> Int64[Tensor, "n"]:
    """Indices that sort rows lexicographically: a gathered set comes in one order, whichever rank
    each row came from, so that what is computed from it is the same to the last bit."""
    return torch.unique(features, dim=0, return_inverse=True)[1].argsort(stable=True)
