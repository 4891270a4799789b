"""Choices of a configuration group, for options such as `--sampler heun`."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.commands.errors import CONF, nearest


def choice(group: str, name: str) -> DictConfig:
    """The node that `group=name` would compose; ValueError lists what there is."""
    path = CONF / group / f"{name}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ValueError(
            f"{group}={name}: no such choice{nearest(name, names)} (there are: {', '.join(names)})"
        )
    node = OmegaConf.load(path)
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
