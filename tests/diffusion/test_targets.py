"""The two-by-two algebra of targets, against round trips and EDM's own formulas."""

import pytest
import torch
from exact_denoisers import SCHEDULES, TARGETS, normal

from ldm.diffusion import Preconditioned, VarianceExploding, corrupt
from ldm.diffusion.targets import compose, solve


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_solving_a_target_gives_back_data_and_noise(schedule, target):
    x0, noise = normal(2, 5, 4, 8, 8)
    t = torch.linspace(0.2, 0.9, 5, dtype=torch.float64)
    x_t = corrupt(schedule, x0, noise, t)
    wanted = compose(target, schedule, x0, noise, t)
    got = solve(target, schedule, wanted, x_t, t)
    torch.testing.assert_close(got, (x0, noise), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("data_std", [0.5, 1.0])
def test_preconditioning_is_edms(data_std):
    """D(x) = c_skip x + c_out F(x), Karras et al. 2022, table 1."""
    schedule = VarianceExploding()
    x0, noise = normal(2, 5, 4, 8, 8)
    t = torch.linspace(0.3, 1, 5, dtype=torch.float64)
    sigma = schedule(t)[1].reshape(-1, 1, 1, 1)
    c_skip = data_std**2 / (sigma**2 + data_std**2)
    c_out = sigma * data_std / (sigma**2 + data_std**2).sqrt()
    wanted = (x0 - c_skip * (x0 + sigma * noise)) / c_out
    torch.testing.assert_close(compose(Preconditioned(data_std), schedule, x0, noise, t), wanted)


def test_one_time_serves_all_rows():
    schedule, x0, noise = SCHEDULES[0], *normal(2, 5, 4, 8, 8)
    one, each = torch.tensor(0.3).double(), torch.full((5,), 0.3).double()
    one, each = one.float().double(), each.float().double()
    torch.testing.assert_close(
        corrupt(schedule, x0, noise, one), corrupt(schedule, x0, noise, each)
    )
