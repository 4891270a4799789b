"""Each shipped objective, sampler, grid and manner of guidance is a whole constructor call that
works, and is chosen by its name."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from exact_denoisers import Function, GaussianData, normal, nothing, seeded
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ldm.commands.composing import composed
from ldm.diffusion import (
    DDIM,
    Cosine,
    Grid,
    Guidance,
    Guided,
    Objective,
    RectifiedFlow,
    Sampler,
    Times,
    Weight,
)

CONF = Path(__file__).parents[2] / "conf"


def load(path):
    """The group's choice, which states every argument of its constructor."""
    node = OmegaConf.load(path)
    if "defaults" in node:  # it names its times and weight
        node = composed(["experiment=emoji/diffusion", f"{path.parent.name}={path.stem}"]).diffusion
    built = instantiate(node)
    assert set(node) - {"_target_"} == {field.name for field in fields(built)}
    return built


def paths(group):
    return {"argvalues": sorted(CONF.glob(f"{group}/*.yaml")), "ids": lambda path: path.stem}


@pytest.mark.parametrize("path", **paths("diffusion"))
def test_objectives_train_and_sample(path):
    objective = load(path)
    assert isinstance(objective, Objective)
    outputs = 1 if objective.variance is None else 2
    network = Function(lambda x_t, t: 0.1 * x_t.repeat(1, outputs, 1, 1))
    x0 = normal(4, 2, 4, 4).float()
    loss = objective(network, x0, nothing(4), seeded(4))
    assert loss.shape == (4,)
    assert loss.isfinite().all()
    latent = DDIM(50)(objective.denoiser(network), x0, nothing(4))
    assert latent.isfinite().all()


@pytest.mark.parametrize("path", **paths("sampler"))
def test_samplers_sample(path):
    sampler = load(path)
    assert isinstance(sampler, Sampler)
    data = GaussianData(Cosine())
    latent = sampler(data, normal(16, 2, 8, 8), nothing(16), seeded(16))
    assert latent.mean().item() == pytest.approx(data.mean, abs=0.03)
    assert latent.std().item() == pytest.approx(data.std, rel=0.1)


@pytest.mark.parametrize("path", **paths("grid"))
def test_grids_lead_to_the_data(path):
    grid = load(path)
    assert isinstance(grid, Grid)
    data = GaussianData(RectifiedFlow())
    latent = DDIM(100, grid)(data, normal(16, 2, 8, 8), nothing(16))
    assert latent.std().item() == pytest.approx(data.std, rel=0.1)


@pytest.mark.parametrize("path", **paths("guidance"))
def test_guidance_pushes(path):
    manner = load(path)
    assert isinstance(manner, Guidance)
    data = GaussianData(Cosine())
    x, t = normal(4, 2, 4, 4), torch.full((4,), 0.5, dtype=torch.float64)
    guided = Guided(data, nothing(4), 3.0, replace(manner, weaker=GaussianData(Cosine(), std=0.6)))
    assert not torch.allclose(guided(x, t, nothing(4)).x0, data(x, t, nothing(4)).x0)


@pytest.mark.parametrize(
    ("group", "protocol", "other"), [("times", Times, "Mode"), ("weight", Weight, "P2")]
)
def test_times_and_weights_are_chosen_by_name(group, protocol, other):
    for path in sorted(CONF.glob(f"{group}/*.yaml")):
        assert isinstance(load(path), protocol)
    typed = f"{group}={other.lower()}"
    config = composed(["experiment=emoji/diffusion", "diffusion=edm", typed])
    assert config.diffusion[group]._target_ == f"ldm.diffusion.{other}"
    assert config.diffusion.target._target_ == "ldm.diffusion.Preconditioned"
