"""What `train.py` does once the configuration is composed: check, build, train, say where."""

import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf, open_dict

from ldm.commands.building import build
from ldm.commands.check import checked
from ldm.commands.composing import typed
from ldm.commands.errors import DIED, FAILED, REFUSED
from ldm.commands.fitting import fit
from ldm.commands.parts import STAGES, Stage, precision_of
from ldm.commands.placement import lacking
from ldm.commands.plan import peak_of, training_cost
from ldm.commands.resuming import hopeless, opened, refuse_other_data, resume_point
from ldm.commands.stale import remembered
from ldm.commands.train_words import announce, conclude, tell_crash, tell_failure, tell_stop
from ldm.data.errors import DataError
from ldm.runs.attempts import Attempts
from ldm.runs.checkpoints import Checkpoint, checkpoints
from ldm.runs.folder import RunFolder, open_run, run_folder
from ldm.runs.processes import check_address, job, rank, watched_by_lightning
from ldm.runs.signals import RETRY, SAVED, stop_signals
from ldm.runs.state import recorded
from ldm.training.callbacks import (
    Blocks,
    Checkpointing,
    StepProgress,
    StepRecord,
    Stopped,
    UnmeasuredError,
    Watchdog,
    Work,
    WriteError,
)
from ldm.training.data import PictureDataModule
from ldm.training.loggers import JsonLines, StepAxis, TensorBoard, introduce
from ldm.training.nonfinite import NonFiniteError, Spikes

warnings.filterwarnings("ignore", r".*LeafSpec.*deprecated")  # Lightning's own, with torch 2.15
warnings.filterwarnings("ignore", r".*module\(s\) in eval mode")  # the averages are, on purpose
warnings.filterwarnings("ignore", ".*does not have many workers")  # `workers` is the user's choice


def train(config: DictConfig, settings: Sequence[str] | None = None) -> int:
    """Train what `stage` says, in the folder that `run_root` and `name` say; the exit code.
    `settings` are shown and recorded as what was asked for, None stands for what was typed."""
    settings = typed() if settings is None else settings
    stop_signals.forget()
    stop_signals.install()
    checked(config)
    check_address()
    folder = run_folder(config.run_root, config.name)
    if lacks := lacking(config):
        if not (job() and checkpoints(folder.path / "checkpoints")):
            raise ValueError(lacks)
        # Where it was trained before, a node is broken and not the configuration: to be requeued.
        print(f"error: {lacks}; this run was trained elsewhere", file=sys.stderr)
        return DIED
    stage = STAGES[config.stage_name](config)
    with open_dict(config):
        config.precision = precision_of(config.precision)
    data = _data(config)
    # Before anything is built: the first weights follow from the seed, alike on every rank.
    L.seed_everything(config.seed, workers=True, verbose=False)
    module = stage.module(data)
    if config.stage_name == "diffusion":
        fit(config)
    # Only now: the stage has filled in what the first stage and the text encoder decide.
    plain: Any = OmegaConf.to_container(config, resolve=True)
    module.configure_optimizers()  # a schedule that cannot be built is refused before anything is
    callbacks = [_progress(config, folder, module), *stage.callbacks(folder, data)]
    facts = _facts(config, module, data)
    only_one = opened(folder) if rank() == 0 else nullcontext()
    with only_one:
        resumed = None
        if rank() == 0:  # the others are told when the training begins
            notices = refuse_other_data(config, folder, facts["data"])
            notices += open_run(folder, plain, [sys.argv[0], *settings])
            resumed = resume_point(folder, str(config.resume))
            for line in notices:
                print(f"  changed  {line}, from step {resumed.step if resumed else 0} on")
            if hopeless(Attempts(folder.path), resumed):
                return FAILED
        trainer = _trainer(config, folder, callbacks, resumed)
        introduce(trainer, folder)
        if trainer.is_global_zero:
            announce(config, settings, folder, trainer, module, data, resumed)
        with recorded(folder.path, facts, writes=rank() == 0) as outcome:
            code = _fit(config, folder, stage, trainer, module, data)
            if code in (SAVED, RETRY):
                outcome["state"] = "interrupted"
            elif code:
                outcome |= {"state": "failed", "error": Attempts(folder.path).last_failure()}
        return code


def _facts(config: DictConfig, module: Any, data: PictureDataModule) -> dict[str, Any]:
    """What the run's state remembers, to be refused another of when it is continued or used."""
    facts = {
        "stage": config.stage_name,
        "max_steps": config.trainer.max_steps,
        "data": {"train": data.train.content_hash, "val": data.val.content_hash},
    }
    if config.stage_name == "diffusion":
        facts["first_stage"] = remembered(module.codec.statistics)
    return facts


def _fit(
    config: DictConfig,
    folder: RunFolder,
    stage: Stage,
    trainer: L.Trainer,
    module: L.LightningModule,
    data: PictureDataModule,
) -> int:
    """Train to the end, or say in one line why not; the exit code."""
    attempts, began = Attempts(folder.path), time.monotonic()
    code, why = DIED, ""
    try:
        trainer.fit(module, datamodule=data)
        code = 0
    except Stopped as stop:
        code, why = tell_stop(stop)
    except (WriteError, UnmeasuredError, NonFiniteError, DataError) as error:
        code, why = FAILED, str(error)
        tell_failure(folder, trainer, why)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        code = tell_crash(config, folder, trainer, error)
        if code == REFUSED:
            raise
    finally:
        if rank() == 0 and code:
            attempts.end(trainer.global_step, code, why)
    if code == 0:
        stop_signals.forget()
        stage.finish(folder, trainer, module, data)
    if code == 0 and trainer.is_global_zero:
        attempts.end(trainer.global_step, 0, "done")
        conclude(folder, trainer, time.monotonic() - began)
    return 0 if watched_by_lightning() else code


def _data(config: DictConfig) -> PictureDataModule:
    return PictureDataModule(
        build(config.data.train, "data.train"),
        build(config.data.val, "data.val"),
        global_batch=config.global_batch,
        accumulate=config.accumulate,
        seed=config.seed,
        workers=config.workers,
        overfit=config.get("overfit"),
    )


def _trainer(
    config: DictConfig, folder: RunFolder, callbacks: list[L.Callback], resumed: Checkpoint | None
) -> L.Trainer:
    every, axis = config.checkpoint.every, StepAxis()
    after = None if rank() else resumed.step if resumed else -1
    callbacks = [
        axis,
        Blocks(**config.blocks),
        Watchdog(folder.path / "failures", **config.watchdog),
        StepRecord(Attempts(folder.path), Spikes(**config.spikes)),
        *callbacks,
        Checkpointing(
            folder.checkpoints,
            every=every,
            keep=config.checkpoint.keep,
            keep_every=config.checkpoint.keep_every,
            best=config.checkpoint.best,
            resume=resumed,
        ),
    ]
    # Ranks come from Slurm; stopping and requeueing do not.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None
    settings: Any = OmegaConf.to_container(config.trainer, resolve=True)
    # Lightning counts validations in batches; everything here counts in optimizer steps.
    settings["val_check_interval"] *= config.accumulate
    precision = config.precision
    if precision == "bf16-true":  # Lightning's own would leave the optimizer nothing but bf16
        settings["strategy"]["gather_bf16"], precision = True, "bf16-mixed"
    trainer: L.Trainer = build(
        settings,
        "trainer",
        callbacks=callbacks,
        plugins=slurm,
        precision=precision,
        accumulate_grad_batches=config.accumulate,
        logger=[
            TensorBoard(folder.path / "tensorboard", axis, after),
            JsonLines(folder.path / "metrics.jsonl", axis, after),
            *([] if config.get("logger") is None else [build(config.logger, "logger", axis=axis)]),
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


def _progress(config: DictConfig, folder: RunFolder, module: Any) -> StepProgress:
    """What a person watches, on the rank that shows it with what the training's work amounts to."""
    work = None
    captions = module.captions if config.stage_name == "diffusion" else None
    if rank() == 0 and (cost := training_cost(config, captions)) is not None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        peak = peak_of(name)
        work = Work(cost.training(), None if peak is None else 1e12 * peak)
    return StepProgress(
        folder.path / "log.txt",
        every=config.log_every,
        global_batch=config.global_batch,
        work=work,
    )
