"""Choices of a configuration group, for options such as `--sampler heun`."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.commands.errors import CONF, choices_of, unknown_choice


def choice(group: str, name: str) -> DictConfig:
    """The node that `group=name` would compose; ValueError lists what there is."""
    if name not in choices_of(group):
        raise ValueError(unknown_choice(group, name))
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    return node


def sampler_node(
    trained: DictConfig, name: str | None, steps: int | None, grid: str | None
) -> DictConfig:
    """The run's sampler, or the named one with the run's number of steps and grid, which belong to
    the schedule more than to the sampler; `steps` and `grid` override."""
    node: Any = trained.copy() if name is None else choice("sampler", name)
    node.steps = trained.steps if steps is None else steps
    node.grid = trained.grid if grid is None else choice("grid", grid)
    return node
