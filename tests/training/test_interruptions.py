"""Interrupted = uninterrupted, bit for bit, in processes that really die.

Both stages x {1 rank, 2 ranks DDP, 2 ranks FSDP2} x {SIGTERM to all ranks, SIGUSR1 to one, SIGKILL
at a random step, SIGKILL during a checkpoint's write} x {0, 2 workers}; its record is in
docs/resume.md.
"""

import json
import os
import random
import signal
import time

import pytest
from started import Starter
from tiny import FIRST, SECOND, last, make_shards, numbers, same

from ldm.runs.checkpoints import checkpoints

pytestmark = pytest.mark.slow
STEPS = 18
WAYS = ("one", "ddp", "fsdp")
RANKS = {
    "one": "trainer=cpu",
    "ddp": "trainer=ddp trainer.accelerator=cpu trainer.devices=2",
    "fsdp": "trainer=fsdp trainer.accelerator=cpu trainer.devices=2",
}
SIGNALS = {"term": signal.SIGTERM, "usr1": signal.SIGUSR1, "kill": signal.SIGKILL}
SAVED, RETRY = 85, 75


def settings_of(stage, way, name, workers=0):
    """Adversary, validations and pictures in the midst of it; a turn of one picture a rank."""
    text = FIRST if stage == "first" else SECOND + " first_stage=runs/first-one"
    if stage == "first":
        text += " module.critic.start=4 module.critic.ramp=4"
    for old, new in {
        "max_steps=7": f"max_steps={STEPS}",
        "evaluation.every=3": "evaluation.every=7",
        "checkpoint.every=2": "checkpoint.every=3",
        "log_every=1": "log_every=2",  # what waits to be logged is kept too
        "trainer=cpu": RANKS[way],
    }.items():
        assert old in text
        text = text.replace(old, new)
    return f"{text} accumulate=2 workers={workers} data=shards data.folder=shards name={name}"


@pytest.fixture(scope="module")
def starter():
    starter = Starter()
    yield starter
    starter.close()


class Trainings:
    """Runs in one folder, and those left alone, each made when it is first asked for."""

    def __init__(self, place, starter):
        self.place, self.starter, self.alone = place, starter, {}
        make_shards(place / "shards")

    def start(self, stage, way, name, workers=0, **more):
        ranks = 1 if way == "one" else 2
        settings = settings_of(stage, way, name, workers)
        return self.starter.start(self.place, settings, ranks=ranks, **more)

    def whole(self, stage, way, name, workers=0):
        run = self.start(stage, way, name, workers)
        assert set(run.wait()) == {0}, run.said()

    def left_alone(self, stage, way):
        """The name of the run that nothing happened to."""
        name = f"{stage}-{way}"
        if name not in self.alone:
            if stage == "second":
                self.left_alone("first", "one")
            self.whole(stage, way, name)
            self.alone[name] = True
        return name

    def step(self, name):
        """Steps that the record tells of."""
        file = self.place / "runs" / name / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        for line in reversed(lines):
            try:
                return json.loads(line)["step"]
            except ValueError:
                continue
        return 0

    def equal(self, name, alone):
        """Weights, averages, optimizer, numbers; each step once on the axis."""
        runs = self.place / "runs"
        same(last(runs, name), last(runs, alone))
        assert numbers(runs, name) == numbers(runs, alone)
        steps = [line["step"] for line in numbers(runs, name) if "train/loss" in line]
        assert steps == list(range(2, STEPS + 1, 2))
        looks = [
            line["step"]
            for line in numbers(runs, name)
            if any(k.endswith("/fd_clip") for k in line)
        ]
        assert looks == [7, 14, STEPS]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory, starter):
    return Trainings(tmp_path_factory.mktemp("interrupted"), starter)


def interrupt(trainings, stage, way, how, name, workers, chance, window=STEPS):
    """Start, and end it before the end and within so many steps; the run and its codes."""
    if how == "write":
        # Seven things or so happen to a draft; later numbers fall into later checkpoints.
        rank = chance.randrange(2) if way == "fsdp" else 0  # the others write nothing
        event = chance.randint(1, min(window, 18) if rank == 0 else 1)
        delay = chance.choice([0.0, chance.uniform(0, 0.02)])
        fault = {"rank": rank, "fault": "killed_while_writing", "event": event, "delay": delay}
        run = trainings.start(stage, way, name, workers, fault=fault)
        while not run.ended() and -signal.SIGKILL not in run.codes.values():
            time.sleep(0.005)
    else:
        first = trainings.step(name)
        at = chance.randint(first + 1, max(first + 1, min(first + window, STEPS - 6)))
        run = trainings.start(stage, way, name, workers)
        while trainings.step(name) < at and not run.ended():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05) if how == "kill" else 0.0)
        ranks = [chance.randrange(len(run.pids))] if how == "usr1" else None
        run.send(SIGNALS[how], ranks)
    if how in ("kill", "write"):
        run.send(signal.SIGKILL)  # the other ranks, as srun and torchrun do it
    return run, run.wait()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["term", "usr1", "kill", "write"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["first", "second"])
def test_interrupted_is_uninterrupted(trainings, stage, way, how, workers):
    alone = trainings.left_alone(stage, way)
    name = f"{stage}-{way}-{how}-{workers}"
    run, codes = interrupt(trainings, stage, way, how, name, workers, random.Random(name))
    if how in ("term", "usr1"):
        assert set(codes) == {SAVED}, run.said()
        assert checkpoints(trainings.place / "runs" / name / "checkpoints")
    else:
        assert -signal.SIGKILL in codes, run.said()
        assert 0 not in codes, run.said()
    trainings.whole(stage, way, name, workers)
    trainings.equal(name, alone)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stage", ["first", "second"])
def test_ten_interruptions_in_a_row(trainings, stage, way):
    alone = trainings.left_alone(stage, way)
    name = f"{stage}-{way}-chain"
    chance = random.Random(name)
    interruptions = 0
    for _ in range(10):
        late = trainings.step(name) > STEPS - 8  # then it is thrown back to a checkpoint
        how = chance.choice(["kill", "write"] if late else ["term", "usr1", "kill", "write"])
        run, codes = interrupt(trainings, stage, way, how, name, chance.choice([0, 2]), chance, 2)
        if 0 in codes:  # it was quicker, near its end
            break
        interruptions += 1
        assert set(codes) <= {SAVED, RETRY, -signal.SIGKILL}, run.said()
    assert interruptions >= 6
    trainings.whole(stage, way, name)
    trainings.equal(name, alone)


def test_ranks_that_lightning_starts_itself(trainings):
    """`python train.py trainer=ddp`: rank 1 is a child of rank 0; Ctrl-C reaches both."""
    alone = trainings.left_alone("second", "ddp")
    settings = settings_of("second", "ddp", "launched")
    run = trainings.starter.start(trainings.place, settings)
    while trainings.step("launched") < 3 and not run.ended():
        time.sleep(0.01)
    os.killpg(run.pids[0], signal.SIGINT)
    assert run.wait() == [SAVED], run.said()
    run = trainings.starter.start(trainings.place, settings)
    assert run.wait() == [0], run.said()
    trainings.equal("launched", alone)
