"""Trainings as `train.py` runs them, in this process: composed configuration, real parts."""

import io
import json
import signal
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from ldm.commands.train import train
from ldm.runs.checkpoints import Checkpoint, checkpoints
from ldm.runs.signals import ASKING, stop_signals
from ldm.training.callbacks import StepProgress

CONF = Path(__file__).parents[2] / "conf"
TINY = "image_size=32 global_batch=4 log_every=1 checkpoint.every=2 trainer=cpu "
TINY += "precision=32-true trainer.max_steps=7 evaluation.every=3 module.lr_schedule.warmup=2"
FIRST = "experiment=emoji/autoencoder autoencoder=tiny " + TINY
SECOND = "experiment=emoji/diffusion backbone=dit_tiny evaluation.prompts=2 sampler.steps=1 " + TINY


def make_shards(folder: Path, seed: int = 0) -> None:
    """Ten pictures to train on, and four."""
    folder.mkdir()
    colours = np.random.default_rng(seed).integers(0, 256, (14, 4, 4, 3), np.uint8)
    for name, part in {"train-0.tar": colours[:10], "val-0.tar": colours[10:]}.items():
        with tarfile.open(folder / name, "w") as tar:
            for number, colour in enumerate(part):
                file = io.BytesIO()
                Image.fromarray(colour).resize((32, 32)).save(file, "PNG")
                for suffix, raw in (("png", file.getvalue()), ("txt", f"ball {number}".encode())):
                    info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    info.size = len(raw)
                    tar.addfile(info, io.BytesIO(raw))


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


def last(root: Path, name: str) -> Checkpoint:
    return checkpoints(root / name / "checkpoints")[-1]


def numbers(root: Path, name: str) -> list[dict[str, float]]:
    """What was logged, without what a clock says."""
    lines = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
    return sorted((k for k in kept if len(k) > 1), key=lambda line: (line["step"], sorted(line)))


def same(one: Checkpoint, other: Checkpoint) -> None:
    """Weights, averages, optimizer, counters: bit for bit."""
    a, b = one.load(), other.load()
    assert a.keys() == b.keys()
    assert a["global_step"] == b["global_step"]
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    assert a["optimizer"].keys() == b["optimizer"].keys() != set()
    for name, entries in a["optimizer"].items():
        for key, tensor in entries.items():
            assert torch.equal(tensor, b["optimizer"][name][key]), (name, key)


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
