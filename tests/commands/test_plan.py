"""What a recipe needs, against counts by hand."""

import pytest
import torch
from torch import nn

from ldm.commands.plan import Cost, Need, count, lines


def test_operations_and_parameters_of_a_layer_are_what_the_formula_says():
    with torch.device("meta"):
        layer = nn.Conv2d(3, 5, 3, padding=1)
        cost = count(layer, lambda: layer(torch.zeros(1, 3, 8, 8)))
    assert cost.parameters == 5 * (3 * 9 + 1)
    assert cost.forward == 2 * 5 * 3 * 9 * 64


def test_time_and_memory_follow():
    # 1e9 numbers; 1e12 operations forward; 100 TFLOP/s at half: 3e12 / 5e13 s a picture a device.
    need = Need(Cost(10**9, 1e12), 100, 36_000, 4, 100.0, 0.5)
    assert need.pictures_per_second == pytest.approx(4 * 5e13 / 3e12)
    assert need.hours == pytest.approx(36_000 * 100 * 3e12 / (4 * 5e13) / 3600)
    assert sum(need.memory().values()) == pytest.approx(5 * 4e9 / 2**30)
    assert sum(need.memory(4).values()) == pytest.approx(5 * 1e9 / 2**30)
    text = "\n".join(lines(need, "H100", 80.0))
    assert "1000.0 M parameters" in text
    assert "an assumption" in text
