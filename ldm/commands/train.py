"""What `train.py` does once the configuration is composed: check, build, train, say where."""

import logging
import sys
import time
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from ldm.commands.building import build
from ldm.commands.errors import FAILED
from ldm.commands.parts import KNOWN_KEYS, STAGES, precision_of
from ldm.runs.checkpoints import Checkpoint, newest_good
from ldm.runs.folder import RunFolder, open_run, run_folder
from ldm.training.callbacks import Checkpointing, StepProgress
from ldm.training.data import PictureDataModule
from ldm.training.loggers import JsonLines

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", r".*LeafSpec.*deprecated")  # Lightning's own, with torch 2.15
warnings.filterwarnings("ignore", ".*does not have many workers")  # `workers` is the user's choice


def train(config: DictConfig) -> None:
    """Train what `stage` says, in the folder that `run_root` and `name` say."""
    for key in config:
        if str(key) not in KNOWN_KEYS:
            raise ValueError(f"{key!s}: no such key in this configuration; take it out")
    folder = run_folder(config.run_root, config.name)
    stage = STAGES[config.stage_name](config)
    with open_dict(config):
        config.precision = precision_of(config.precision)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    data = _data(config)
    module = stage.module()
    module.configure_optimizers()  # a schedule that cannot be built is refused before anything is
    open_run(folder, plain, sys.argv)
    resumed = _resume_point(folder)
    trainer = _trainer(config, folder, [*stage.callbacks(folder, data)])
    _announce(config, folder, trainer, module, resumed)
    began = time.monotonic()
    L.seed_everything(config.seed, workers=True, verbose=False)
    if resumed is not None and resumed.step >= trainer.max_steps:
        print(f"already at step {resumed.step} of {trainer.max_steps}; nothing to train")
    else:
        trainer.fit(module, datamodule=data, ckpt_path=None if resumed is None else resumed.state)
    if trainer.is_global_zero and not trainer.interrupted:
        stage.finish(folder, module, data)
    _conclude(folder, trainer, time.monotonic() - began)
    if trainer.interrupted:
        sys.exit(FAILED)


def _data(config: DictConfig) -> PictureDataModule:
    return PictureDataModule(
        build(config.data.train, "data.train"),
        build(config.data.val, "data.val"),
        global_batch=config.global_batch,
        accumulate=config.accumulate,
        seed=config.seed,
        workers=config.workers,
    )


def _trainer(config: DictConfig, folder: RunFolder, callbacks: list[L.Callback]) -> L.Trainer:
    every, log = config.checkpoint.every, folder.path / "log.txt"
    callbacks = [
        StepProgress(log, every=config.log_every, global_batch=config.global_batch),
        *callbacks,
        Checkpointing(
            folder.checkpoints,
            every=every,
            keep=config.checkpoint.keep,
            keep_every=config.checkpoint.keep_every,
        ),
    ]
    trainer: L.Trainer = build(
        config.trainer,
        "trainer",
        callbacks=callbacks,
        precision=config.precision,
        accumulate_grad_batches=config.accumulate,
        logger=[
            TensorBoardLogger(str(folder.path), name="", version="tensorboard"),
            JsonLines(folder.path / "metrics.jsonl"),
        ],
        log_every_n_steps=config.log_every,
        default_root_dir=str(folder.path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )
    return trainer


def _resume_point(folder: RunFolder) -> Checkpoint | None:
    for found in newest_good(folder.checkpoints):
        if isinstance(found, Checkpoint):
            return found
        print(f"warning: {found}", file=sys.stderr)
    return None


def _announce(
    config: DictConfig,
    folder: RunFolder,
    trainer: L.Trainer,
    module: nn.Module,
    resumed: Checkpoint | None,
) -> None:
    if not trainer.is_global_zero:
        return
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    device = trainer.strategy.root_device
    world, turns = trainer.world_size, config.accumulate
    per_device = config.global_batch // world // turns
    lines = {
        "run": str(folder.path)
        + ("" if resumed is None else f"  (continues at step {resumed.step})"),
        "settings": " ".join(sys.argv[1:]) or "(the defaults)",
        "on": f"{world} x {device.type}, {config.precision}",
        "trains": f"{trained / 1e6:.2f} M parameters for {trainer.max_steps} steps",
        "batch": f"{config.global_batch} = {world} devices x {per_device} x {turns} turns",
        "data": f"{config.data.train.shards}",
        "watch": f"tensorboard --logdir {config.run_root}",
    }
    for name, value in lines.items():
        print(f"{name:>9}  {value}", flush=True)


def _conclude(folder: RunFolder, trainer: L.Trainer, seconds: float) -> None:
    if not trainer.is_global_zero:
        return
    numbers = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(("val/", "sample/", "reconstruction/"))
    }
    minutes = f"{seconds / 60:.1f} minutes"
    print(f"     done  step {trainer.global_step} after {minutes}: {folder.path}")
    if numbers:
        print("  metrics  " + "  ".join(f"{k} {v:.4g}" for k, v in sorted(numbers.items())))
