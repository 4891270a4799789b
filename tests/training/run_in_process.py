"""Trainings as `train.py` runs them, in this process: composed configuration, real parts."""

import signal
import warnings
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ldm.commands.train import train
from ldm.runs.signals import ASKING, stop_signals
from ldm.training.callbacks import StepProgress

CONF = Path(__file__).parents[2] / "conf"


def run(root: Path, name: str, settings: str) -> int:
    """The exit code. The pictures are in `root`/shards."""
    if "data.folder" not in settings:
        settings += f" data.folder={root}/shards"
    settings += " data=shards"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*settings.split(), f"name={name}", f"run_root={root}"])
    handlers = {number: signal.getsignal(number) for number in ASKING}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # Lightning's remarks, which train.py keeps from users
            return train(config)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        stop_signals.forget()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: object) -> None:
    """Call `act` once, at the end of a step's batch."""
    ordinary = StepProgress.on_train_batch_end
    done = []

    def end(self, trainer, module, *rest):
        ordinary(self, trainer, module, *rest)
        if trainer.global_step == step and not done:
            done.append(step)
            act()

    monkeypatch.setattr(StepProgress, "on_train_batch_end", end)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that is written for endings runs after it."""
