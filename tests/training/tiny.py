"""Trainings of both stages that take a second, their pictures, and what they leave behind."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.runs.checkpoints import Checkpoint, checkpoints

TINY = "image_size=32 global_batch=4 log_every=1 checkpoint.every=2 trainer=cpu "
TINY += "precision=32-true trainer.max_steps=7 evaluation.every=3 module.lr_schedule.warmup=2"
FIRST = "experiment=emoji/autoencoder autoencoder=tiny loss=l1 " + TINY
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


def last(root: Path, name: str) -> Checkpoint:
    return checkpoints(root / name / "checkpoints")[-1]


def numbers(root: Path, name: str) -> list[dict[str, float]]:
    """What was logged, without what a clock says and how much memory was used."""
    lines = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines
    ]
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
