"""Where a training runs: what no machine has is told from what this one lacks."""

import logging
import re
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import DictConfig, OmegaConf

from ldm.commands.building import build

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
SET_ELSEWHERE = {  # arguments of Lightning's Trainer that train.py gives, and our key for them
    "precision": "precision",
    "accumulate_grad_batches": "accumulate",
    "log_every_n_steps": "log_every",
    "default_root_dir": "run_root and name",
    "logger": "logger",
    **dict.fromkeys(
        (
            "callbacks",
            "plugins",
            "enable_checkpointing",
            "enable_progress_bar",
            "enable_model_summary",
            "use_distributed_sampler",
            "check_val_every_n_epoch",
            "num_sanity_val_steps",
        ),
        "",
    ),
}


def refuse_trainer(trainer: Mapping[str, Any]) -> None:
    """ValueError for accelerators, devices and strategies that no machine has, and for what is set
    by other keys."""
    for name, key in SET_ELSEWHERE.items():
        if name in trainer:
            instead = f"set {key}" if key else "it belongs to the training here"
            raise ValueError(f"trainer.{name}: would not be heard; take it out: {instead}")
    accelerators = ("auto", "gpu", *AcceleratorRegistry.available_accelerators())
    for name, known, remedy in (
        ("accelerator", accelerators, f"; set {' or '.join(accelerators)}"),
        (
            "strategy",
            ("auto", *StrategyRegistry.available_strategies()),
            "; take trainer=ddp or trainer=fsdp, which bring theirs",
        ),
    ):
        asked = trainer.get(name, "auto")
        if isinstance(asked, str) and asked not in known:
            raise ValueError(f"trainer.{name}={asked}: no such {name}{remedy}")
    devices, on_cpu = trainer.get("devices", "auto"), trainer.get("accelerator") == "cpu"
    listed = devices if isinstance(devices, list) else str(devices).split(",")
    numbers = [int(one) for one in map(str, listed) if re.fullmatch(r"-?\d+", one.strip())]
    if isinstance(devices, list) or len(listed) > 1:  # numbers of GPUs
        good = len(set(numbers)) == len(listed) > 0 and min(numbers) >= 0 and not on_cpu
    else:
        good = devices == "auto" or (numbers > [0]) or (numbers == [-1] and not on_cpu)
    if not good:
        raise ValueError(
            f"trainer.devices={devices}: set auto or how many (1 or more)"
            + ("" if on_cpu else ", -1 for all GPUs, or a list of their numbers such as [0,1]")
        )


def lacking(config: DictConfig) -> str | None:
    """Why this machine cannot train where `trainer` says; None where it can."""
    settings: Any = OmegaConf.to_container(config.trainer, resolve=True)
    settings.pop("profiler", None)  # it would begin to write
    try:
        with warnings.catch_warnings(action="ignore"):  # the training's own trainer warns
            build(settings, "trainer", logger=False, enable_checkpointing=False)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
        places = ("accelerator", "devices", "num_nodes")
        asked = ", ".join(f"trainer.{name}={settings[name]}" for name in places if name in settings)
        said = " ".join(str(error).split()).rstrip(".!")
        return f"{asked}: Lightning says: {said}; set trainer=cpu, or what this machine has"
    return None
