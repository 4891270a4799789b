"""Everything that a training's future depends on, by the names of its parameters.

The same state continues on any number of ranks, sharded or not: a tensor is stored whole, or as
shards that know their place (`torch.distributed.checkpoint`), and is laid out anew when loaded.
Data and noise need no state, for they are functions of the step.
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ldm.runs.shards import flat
from ldm.training.sharding import laid_out

Named = dict[str, dict[str, Tensor]]
COUNTER = "step"  # torch's optimizers keep it as a tensor, and some of them on the CPU


def optimizer_state(module: nn.Module, optimizer: Optimizer) -> Named:
    """Parameter's name -> its entries; numbers become tensors."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {
        names[parameter]: {key: torch.as_tensor(value) for key, value in entries.items()}
        for parameter, entries in optimizer.state.items()
    }


def load_optimizer_state(module: nn.Module, optimizer: Optimizer, state: Named) -> None:
    """The reverse; tensors of a parameter's shape are laid out as the parameter is."""
    parameters = dict(module.named_parameters())
    fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    optimizer.state.clear()
    for name, entries in state.items():
        parameter = parameters[name]
        loaded = {}
        for key, value in entries.items():
            if key == COUNTER:  # where the optimizer itself would have made it
                loaded[key] = value.to(parameter.device if fused else "cpu")
            elif value.shape == parameter.shape:
                loaded[key] = laid_out(value, parameter)
            else:
                loaded[key] = value.to(parameter.device)
        optimizer.state[parameter] = loaded


def collect(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """Tensors (`state_dict`, `optimizer`) of this rank, and numbers that all ranks share."""
    optimizer = trainer.optimizers[0]
    return {
        "state_dict": dict(module.state_dict()),
        "optimizer": optimizer_state(module, optimizer),
        "precision": trainer.precision_plugin.state_dict(),
        "callbacks": {
            one.state_key: kept for one in _callbacks(trainer) if (kept := one.state_dict())
        },
        "global_step": trainer.global_step,
    }


def restore(trainer: L.Trainer, module: L.LightningModule, state: Mapping[str, Any]) -> None:
    """Continue from `state` as if the training had never stopped. ValueError when the weights
    are of another model."""
    put_back(trainer, module, state, state["global_step"])
    stand_at(trainer, state["global_step"])
    for one in _callbacks(trainer):
        if kept := state["callbacks"].get(one.state_key):
            one.load_state_dict(kept)


def put_back(
    trainer: L.Trainer, module: L.LightningModule, state: Mapping[str, Any], step: int
) -> None:
    """Weights, average and optimizer as in `state`, at the learning rate of `step`; the counters
    stay."""
    _load_weights(module, state["state_dict"])
    optimizer = trainer.optimizers[0]
    load_optimizer_state(module, optimizer, state["optimizer"])
    for one in trainer.lr_scheduler_configs:
        _schedule_at(one.scheduler, step)
    if state["precision"]:
        trainer.precision_plugin.load_state_dict(state["precision"])


def stand_at(trainer: L.Trainer, step: int) -> None:
    """Set Lightning's counters as they are after that many whole optimizer steps."""
    loop = trainer.fit_loop.epoch_loop
    batches: Any = loop.batch_progress.total
    turns = step * trainer.accumulate_grad_batches
    batches.ready = batches.started = batches.processed = batches.completed = turns
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = step
    loop.scheduler_progress.total.ready = loop.scheduler_progress.total.completed = step
    loop._batches_that_stepped = step


def _callbacks(trainer: L.Trainer) -> list[Any]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def _schedule_at(schedule: Any, step: int) -> None:
    """All of `ldm.training.optim` are functions of the step, so a rate that the configuration
    changes holds from here on."""
    schedule.last_epoch = step
    schedule._step_count = step + 1
    schedule._last_lr = [
        rate * factor(step)
        for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


def _load_weights(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    if wrong := sorted(set(own) ^ set(saved)):
        raise ValueError(
            f"the checkpoint is of another model ({wrong[0]} is in only one of them); "
            "set name=ANOTHER to train this one from the start"
        )
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(
                f"the checkpoint is of another model ({name} is {tuple(saved[name].shape)} there "
                f"and {tuple(tensor.shape)} here); set name=ANOTHER to train this one"
            )
        with torch.no_grad():
            tensor.copy_(laid_out(saved[name], tensor))


def targets(module: nn.Module, found: Mapping[str, tuple[torch.Size, torch.dtype]]) -> Any:
    """Tensors to read a sharded checkpoint into, by flat name, laid out as this training's are."""
    own = flat({"state_dict": module.state_dict()})
    if wrong := sorted(set(own) ^ {name for name in found if name.startswith("state_dict|")}):
        raise ValueError(
            f"the checkpoint is of another model ({wrong[0]} is in only one of them); "
            "set name=ANOTHER to train this one from the start"
        )
    parameters = dict(module.named_parameters())
    into = {}
    for name, (size, dtype) in found.items():
        if name in own:
            into[name] = torch.zeros_like(own[name])
            continue
        _, owner, key = name.split("|")
        parameter = parameters[owner]
        same = size == parameter.shape and key != COUNTER
        into[name] = torch.zeros_like(parameter) if same else torch.zeros(size, dtype=dtype)
    return into


def is_sharded(state: Mapping[str, Any]) -> bool:
    """Whether ranks hold parts of it."""
    return any(isinstance(tensor, DTensor) for tensor in state["state_dict"].values())
