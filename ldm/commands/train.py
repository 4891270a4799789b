"""What `train.py` does once the configuration is composed: check, build, train, say where."""

import logging
import sys
import time
import traceback
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from ldm.commands.building import build
from ldm.commands.check import checked
from ldm.commands.errors import FAILED, REFUSED
from ldm.commands.fitting import fit
from ldm.commands.parts import STAGES, Stage, precision_of
from ldm.data.errors import DataError
from ldm.runs.attempts import SAME_STEP, Attempts
from ldm.runs.checkpoints import Checkpoint, checkpoints, newest_good, tidy
from ldm.runs.compare import recorded_data
from ldm.runs.folder import RunFolder, make_folder, open_run, run_folder
from ldm.runs.lock import RunLock
from ldm.runs.processes import rank, restarts, watched_by_lightning
from ldm.runs.signals import RETRY, SAVED, stop_signals
from ldm.runs.state import recorded
from ldm.training.callbacks import (
    Blocks,
    Checkpointing,
    StepProgress,
    StepRecord,
    Stopped,
    Watchdog,
    WriteError,
)
from ldm.training.data import PictureDataModule
from ldm.training.loggers import JsonLines, StepAxis, TensorBoard, introduce
from ldm.training.nonfinite import NonFiniteError

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", r".*LeafSpec.*deprecated")  # Lightning's own, with torch 2.15
warnings.filterwarnings("ignore", r".*module\(s\) in eval mode")  # the averages are, on purpose
warnings.filterwarnings("ignore", ".*does not have many workers")  # `workers` is the user's choice


def train(config: DictConfig) -> int:
    """Train what `stage` says, in the folder that `run_root` and `name` say; the exit code."""
    stop_signals.forget()
    stop_signals.install()
    checked(config)
    folder = run_folder(config.run_root, config.name)
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
    if rank() == 0:
        make_folder(folder)
    facts = {
        "stage": config.stage_name,
        "max_steps": config.trainer.max_steps,
        "data": {"train": data.train.content_hash, "val": data.val.content_hash},
    }
    only_one: AbstractContextManager[Any] = RunLock(folder.path) if rank() == 0 else nullcontext()
    with only_one:
        resumed = None
        if rank() == 0:  # the others are told when the training begins
            if recorded_data(folder.path) not in ({}, facts["data"]):
                raise ValueError(
                    f"data.train or data.val: other pictures than {folder.path} was trained on; "
                    "put them back, or set name=ANOTHER"
                )
            notices = open_run(folder, plain, sys.argv)
            resumed = _resume_point(folder, str(config.resume))
            for line in notices:
                print(f"  changed  {line}, from step {resumed.step if resumed else 0} on")
            if _hopeless(Attempts(folder.path), resumed):
                return FAILED
        trainer = _trainer(config, folder, stage.callbacks(folder, data), resumed)
        introduce(trainer, folder)
        _announce(config, folder, trainer, module, resumed)
        with recorded(folder.path, facts, writes=rank() == 0) as outcome:
            code = _fit(config, folder, stage, trainer, module, data)
            if code in (SAVED, RETRY):
                outcome["state"] = "interrupted"
            elif code:
                outcome |= {"state": "failed", "error": Attempts(folder.path).last_failure()}
        return code


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
    code, why = 1, ""
    try:
        trainer.fit(module, datamodule=data)
        code = 0
    except Stopped as stop:
        code, why = _tell_stop(stop)
    except (WriteError, NonFiniteError, DataError) as error:
        code, why = FAILED, str(error)
        _tell_failure(folder, trainer, why)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        code = _tell_crash(config, folder, trainer, error)
        if code == REFUSED:
            raise
    finally:
        if rank() == 0 and code:
            attempts.end(trainer.global_step, code, why)
    if code == 0 and trainer.is_global_zero:
        stop_signals.forget()
        stage.finish(folder, module, data)
        attempts.end(trainer.global_step, 0, "done")
        _conclude(folder, trainer, time.monotonic() - began)
    return 0 if watched_by_lightning() else code


def _tell_stop(stop: Stopped) -> tuple[int, str]:
    if rank() == 0:
        saved = "nothing is saved" if stop.saved is None else f"saved at step {stop.saved}"
        print(f"  stopped  after step {stop.step}, {saved}; the same command continues", flush=True)
    return SAVED, str(stop)


def _tell_failure(folder: RunFolder, trainer: L.Trainer, why: str) -> None:
    if rank() == 0:
        good = checkpoints(folder.checkpoints)
        last = f"the last good checkpoint is {good[-1].path}" if good else "there is no checkpoint"
        print(f"error: step {trainer.global_step}: {why}; {last}", file=sys.stderr)


def _tell_crash(config: DictConfig, folder: RunFolder, trainer: L.Trainer, error: Exception) -> int:
    """Keep each rank's traceback; explain what has a known remedy, and what is another's fault."""
    failures = folder.path / "failures"
    failures.mkdir(exist_ok=True)
    record = failures / f"rank-{rank()}.txt"
    record.write_text(f"step {trainer.global_step}\n{traceback.format_exc()}")
    if isinstance(error, ValueError) and trainer.global_step == 0:
        return REFUSED  # while it was set up: reported in one line, as every refusal
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        turn = config.global_batch // trainer.world_size // config.accumulate
        _tell_failure(
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
    return 1


def _peak(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return ""
    return f" ({torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at the peak)"


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
    after = None if rank() else resumed.step if resumed else 0
    callbacks = [
        axis,
        Blocks(**config.blocks),
        Watchdog(folder.path / "failures", **config.watchdog),
        StepRecord(Attempts(folder.path)),
        StepProgress(
            folder.path / "log.txt", every=config.log_every, global_batch=config.global_batch
        ),
        *callbacks,
        Checkpointing(
            folder.checkpoints,
            every=every,
            keep=config.checkpoint.keep,
            keep_every=config.checkpoint.keep_every,
            resume=resumed,
        ),
    ]
    # Ranks come from Slurm; stopping and requeueing do not.
    slurm = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None
    settings: Any = OmegaConf.to_container(config.trainer, resolve=True)
    # Lightning counts validations in batches; everything here counts in optimizer steps.
    settings["val_check_interval"] *= config.accumulate
    trainer: L.Trainer = build(
        settings,
        "trainer",
        callbacks=callbacks,
        plugins=slurm,
        precision=config.precision,
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


def _resume_point(folder: RunFolder, resume: str) -> Checkpoint | None:
    """Where to continue, as `resume` says: auto (the newest good checkpoint, or the start), must
    (there has to be one), never (there must not be one), or the folder of a checkpoint."""
    own = checkpoints(folder.checkpoints)
    if resume == "never" and own:
        raise ValueError(
            f"resume=never, but {own[-1].path} is there; set resume=auto to continue, or "
            "name=ANOTHER to start anew"
        )
    if resume not in ("auto", "never", "must"):
        return _asked_point(folder, Path(resume))
    tidy(folder.checkpoints)
    found = _newest(folder)
    if found is None and resume == "must":
        raise ValueError(
            f"resume=must, but {folder.checkpoints} holds no good checkpoint; set resume=auto to "
            "begin at the start"
        )
    return found


def _asked_point(folder: RunFolder, path: Path) -> Checkpoint | None:
    there = path.resolve()  # `last` is a link
    asked = next((c for c in checkpoints(there.parent) if c.path.name == there.name), None)
    if asked is None:
        raise ValueError(
            f"resume={path}: no checkpoint; set auto, must, never, or a folder such as "
            f"{folder.checkpoints}/step-00001000"
        )
    if damage := asked.damage():
        raise ValueError(f"resume={path}: {damage}; name another checkpoint")
    inside = path.resolve().parent == folder.checkpoints.resolve()
    if restarts() or (checkpoints(folder.checkpoints) and not inside):
        return _newest(folder) or asked  # this run has begun from there, and gone on
    for moved in tidy(folder.checkpoints, after=asked.step):
        print(f"set aside  {moved}")
    return asked


def _newest(folder: RunFolder) -> Checkpoint | None:
    newest = checkpoints(folder.checkpoints)[-1:]
    for found in newest_good(folder.checkpoints):
        if isinstance(found, Checkpoint):
            if newest[0].step != found.step:
                lost = newest[0].step - found.step
                print(f"warning: {lost} steps are done again", file=sys.stderr)
            return found
        print(f"warning: {found}", file=sys.stderr)
    return None


def _hopeless(attempts: Attempts, resumed: Checkpoint | None) -> bool:
    """Whether this job has died at the same step too often; else the new start is written down."""
    step = resumed.step if resumed else 0
    if restarts() and attempts.fruitless(step) >= SAME_STEP:
        print(
            f"error: the job died {SAME_STEP} times at step {step} without getting further; the "
            f"last time: {attempts.last_failure()}; not tried again. Mend it, then submit anew",
            file=sys.stderr,
        )
        return True
    attempts.start(step)
    return False


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
    if resumed is not None and resumed.step >= trainer.max_steps:
        print(f"already at step {resumed.step} of {trainer.max_steps}; nothing to train")
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
        if name.startswith(("val/", "sample/", "reconstruction/")) and name.count("/") == 1
    }
    minutes = f"{seconds / 60:.1f} minutes"
    print(f"     done  step {trainer.global_step} after {minutes}: {folder.path}")
    if numbers:
        print("  metrics  " + "  ".join(f"{k} {v:.4g}" for k, v in sorted(numbers.items())))
