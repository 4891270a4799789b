"""A configuration from overrides, for verbs that do not train."""

import sys
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ldm.commands.errors import CONF, choices_of, nearest


def composed(overrides: Sequence[str]) -> DictConfig:
    """What train.py would see. ValueError where an override is none; Hydra's own errors pass, and
    `reported` puts them into a line."""
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ValueError(f"{override!r} is no setting; write KEY=VALUE, such as seed=1")
        if override.startswith(("hydra.", "+hydra.", "--")):
            raise ValueError(f"{override}: is Hydra's own; give it to train.py")
    if not CONF.is_dir():
        raise FileNotFoundError(
            "conf/ is not beside the installed package; install from a clone with "
            "`pip install -e .`"
        )
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def choices(group: str) -> list[str]:
    """The names of a group, subfolders with; ValueError lists the groups there are."""
    if not (CONF / group).is_dir():
        groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
        raise ValueError(
            f"{group!r} is no group of settings{nearest(group, groups)} "
            f"(there are: {', '.join(groups)})"
        )
    return choices_of(group)


def typed() -> list[str]:
    """What was typed for this training: of several by `-m`, its own settings."""
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        words = HydraConfig.get().overrides.task
        return [word.replace("\\{", "{").replace("\\}", "}") for word in words]  # as it was typed
    return sys.argv[1:]
