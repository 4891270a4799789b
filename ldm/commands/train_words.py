"""What a training says of itself: before it, at its end, and when it fails."""

import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ldm.commands.errors import DIED, FAILED, REFUSED
from ldm.runs.checkpoints import Checkpoint, checkpoints
from ldm.runs.folder import RunFolder
from ldm.runs.processes import job, job_end, rank
from ldm.runs.signals import RETRY, SAVED
from ldm.training.callbacks import Stopped
from ldm.training.data import PictureDataModule


def tell_stop(stop: Stopped) -> tuple[int, str]:
    """Stopped by a signal; the exit code and the words that the run keeps."""
    if rank() == 0:
        saved = "nothing is saved" if stop.saved is None else f"saved at step {stop.saved}"
        print(f"  stopped  after step {stop.step}, {saved}; the same command continues", flush=True)
    return SAVED, str(stop)


def tell_failure(folder: RunFolder, trainer: L.Trainer, why: str) -> None:
    """What trying again will not mend, and what is left."""
    if rank() == 0:
        good = checkpoints(folder.checkpoints)
        last = f"the last good checkpoint is {good[-1].path}" if good else "there is no checkpoint"
        at = "" if why.startswith("step ") else f"step {trainer.global_step}: "
        print(f"error: {at}{why}; {last}", file=sys.stderr)


def tell_crash(config: DictConfig, folder: RunFolder, trainer: L.Trainer, error: Exception) -> int:
    """Keep each rank's traceback; explain what has a known remedy, and what is another's fault."""
    failures = folder.path / "failures"
    failures.mkdir(exist_ok=True)
    record = failures / f"rank-{rank()}.txt"
    record.write_text(f"step {trainer.global_step}\n{traceback.format_exc()}")
    if isinstance(error, ValueError | FileNotFoundError) and trainer.global_step == 0:
        return REFUSED  # while it was set up: reported in one line, as every refusal
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        turn = config.global_batch // trainer.world_size // config.accumulate
        tell_failure(
            folder,
            trainer,
            f"out of memory on rank {rank()} with {turn} pictures of {config.image_size} pixels at "
            f"once{_peak(trainer)}; set accumulate={2 * config.accumulate} for {turn // 2} at once "
            "(the same training), or blocks.recompute_every=1",
        )
        return FAILED
    if "peer" in str(error) and trainer.world_size > 1:
        print(f"error: rank {rank()} lost another rank; {failures} tells why", file=sys.stderr)
        return RETRY
    traceback.print_exc()
    return DIED


def _peak(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return ""
    return f" ({torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at the peak)"


def announce(
    config: DictConfig,
    settings: Sequence[str],
    folder: RunFolder,
    trainer: L.Trainer,
    module: nn.Module,
    data: PictureDataModule,
    resumed: Checkpoint | None,
) -> None:
    """What is about to be trained, on what, and how to look at it."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    device = trainer.strategy.root_device
    world, turns = trainer.world_size, config.accumulate
    per_device = config.global_batch // world // turns
    if resumed is not None and resumed.step >= trainer.max_steps:
        print(f"already at step {resumed.step} of {trainer.max_steps}; nothing to train")
    lines = {
        "run": str(folder.path)
        + ("" if resumed is None else f"  (continues at step {resumed.step})"),
        "settings": " ".join(settings) or "(the defaults)",
        "on": f"{world} x {device.type}, {config.precision}",
        "trains": f"{trained / 1e6:.2f} M parameters for {trainer.max_steps} steps",
        "batch": f"{config.global_batch} = {world} devices x {per_device} x {turns} turns",
        "data": f"{len(data.train)} to train, {len(data.val)} to validate: "
        + ", ".join(_shards(config.data.train)),
        "stop": "SIGTERM, SIGINT, SIGUSR1, SIGUSR2: saved after the step, exit code 85" + _limit(),
        "watch": f"tensorboard --logdir {config.run_root}",
    }
    for name, value in lines.items():
        print(f"{name:>9}  {value}", flush=True)


def _limit() -> str:
    """Where it runs in Slurm: until when, and whether it can be put back into the queue."""
    if not job():
        return ""
    end = job_end()
    if end is None:
        return "; `scontrol` does not answer here: submit the job again after that"
    return f"; Slurm's limit is {end}"


def _shards(node: Any) -> Iterator[str]:
    """Every `shards` of a data set, or of the data sets that it is made of."""
    if OmegaConf.is_list(node):
        for part in node:
            yield from _shards(part)
    elif OmegaConf.is_dict(node):
        for key, value in node.items():
            if key != "shards":
                yield from _shards(value)
            elif OmegaConf.is_list(value):
                yield from map(str, value)
            else:
                yield str(value)


def conclude(folder: RunFolder, trainer: L.Trainer, seconds: float) -> None:
    """That it is done, and the last numbers."""
    if not trainer.is_global_zero:
        return
    numbers = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(("val/", "sample/", "reconstruction/")) and name.count("/") == 1
    }
    minutes = f"{seconds / 60:.1f} minutes"
    print(f"     done  step {trainer.global_step} after {minutes}: {folder.path}")
    if numbers:
        print("  metrics  " + "  ".join(f"{k} {v:.4g}" for k, v in sorted(numbers.items())))
