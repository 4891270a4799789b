"""Two processes as one: the same training, interrupted or not. Subprocesses, hence slow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_in_process import FIRST, SECOND, make_shards

from ldm.runs.checkpoints import checkpoints

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
TWO = "trainer.accelerator=cpu trainer.devices=2"


def command(place, name, settings):
    settings = settings.replace("evaluation.every=3", "evaluation.every=1000")
    settings += f" data=shards data.folder=shards name={name}"
    return [sys.executable, str(ROOT / "train.py"), *settings.split()]


def train(place, name, settings):
    done = subprocess.run(
        command(place, name, settings), cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return checkpoints(place / "runs" / name / "checkpoints")[-1].load()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("ranks")
    make_shards(place / "shards")
    train(place, "first", FIRST)
    return place


def close(one, other, tolerance):
    assert one["global_step"] == other["global_step"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        assert torch.allclose(tensor, other["state_dict"][name], atol=tolerance, rtol=0), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one(place, strategy):
    second = f"{SECOND} first_stage=runs/first".replace("max_steps=7", "max_steps=20")
    if not (place / "runs" / "alone").exists():
        train(place, "alone", f"{second} accumulate=2")
    alone = checkpoints(place / "runs" / "alone" / "checkpoints")[-1].load()
    both = train(place, strategy, second.replace("trainer=cpu", f"trainer={strategy} {TWO}"))
    close(both, alone, 1e-5)


def test_ranks_with_other_data_are_refused_at_once(place):
    """FAULTS.md, row 19: as when one machine has an old copy of the shards."""
    for rank in range(2):
        make_shards(place / f"copy-{rank}", seed=rank)
    settings = f"{FIRST} name=torn data=shards data.folder=copy-${{oc.env:RANK}}"
    settings = settings.replace("trainer=cpu", f"trainer=ddp {TWO}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "train.py"), *settings.split()],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode != 0
    assert "error: data.train: rank 1 on" in done.stderr
    assert "has other data than rank 0" in done.stderr
    assert not list((place / "runs" / "torn" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_interrupted_ranks_continue_bit_for_bit(place, strategy, number):
    settings = f"{SECOND} first_stage=runs/first".replace("max_steps=7", "max_steps=40")
    settings = settings.replace("trainer=cpu", f"trainer={strategy} {TWO}")
    if not (place / "runs" / f"left-{strategy}").exists():
        train(place, f"left-{strategy}", settings)
    left = checkpoints(place / "runs" / f"left-{strategy}" / "checkpoints")[-1].load()
    name = f"{strategy}-{number}"
    metrics = place / "runs" / name / "metrics.jsonl"
    with subprocess.Popen(command(place, name, settings), cwd=place, start_new_session=True) as run:
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
            time.sleep(0.05)
            assert run.poll() is None
        os.killpg(run.pid, number)
        code = run.wait()
    assert code == (-9 if number == signal.SIGKILL else 85)
    close(train(place, name, settings), left, 0)
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in steps if "train/loss" in line] == list(range(1, 41))
