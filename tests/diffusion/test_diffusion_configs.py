"""Each shipped objective and sampler is a whole constructor call that works."""

from dataclasses import fields
from pathlib import Path

import pytest
from exact_denoisers import Function, GaussianData, normal, nothing, seeded
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ldm.diffusion import Cosine, Objective, Sampler

CONF = Path(__file__).parents[2] / "conf"


def load(path):
    config = OmegaConf.load(path)
    built = instantiate(config)
    assert set(config) - {"_target_"} == {field.name for field in fields(built)}
    return built


@pytest.mark.parametrize("path", sorted(CONF.glob("diffusion/*.yaml")), ids=lambda p: p.stem)
def test_objectives_train_and_sample(path):
    objective = load(path)
    assert isinstance(objective, Objective)
    network = Function(lambda x_t, t: 0.1 * x_t)
    x0 = normal(4, 2, 4, 4).float()
    loss = objective(network, x0, nothing(4), seeded(4))
    assert loss.shape == (4,)
    assert loss.isfinite().all()
    latent = instantiate(OmegaConf.load(CONF / "sampler" / "ddim.yaml"))(
        objective.denoiser(network), x0, nothing(4)
    )
    assert latent.isfinite().all()


@pytest.mark.parametrize("path", sorted(CONF.glob("sampler/*.yaml")), ids=lambda p: p.stem)
def test_samplers_sample(path):
    sampler = load(path)
    assert isinstance(sampler, Sampler)
    data = GaussianData(Cosine())
    latent = sampler(data, normal(16, 2, 8, 8), nothing(16), seeded(16))
    assert latent.mean().item() == pytest.approx(data.mean, abs=0.03)
    assert latent.std().item() == pytest.approx(data.std, rel=0.1)
