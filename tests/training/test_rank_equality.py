"""Two ranks as one process, and one training on 2, 1 and 4 ranks; in processes, hence slow.

The record is in docs/resume.md.
"""

import shutil
import signal
import time

import pytest
import torch
from started import Starter
from tiny import FIRST, SECOND, last, make_shards, numbers

from ldm.frozen import LatentStatistics

pytestmark = pytest.mark.slow
STEPS = 20
# Differences in the last bit grow: Muon's iterations in bf16 make 1e-3 of them in one step, and
# AdamW, which divides a gradient by its own size, takes a whole step in the direction of what is
# noise; with a larger eps it does not.
FIRST_STAGE = FIRST + " module.critic.start=5 module.critic.ramp=5 module.optimizer.lr=1e-4"
FIRST_STAGE += " module.optimizer._target_=torch.optim.AdamW +module.optimizer.eps=1e-4"
FIRST_STAGE += " module.alignment={_target_:ldm.models.Alignment,latent_channels:4,width:128,"
FIRST_STAGE += "features:{_target_:ldm.frozen.clip.ClipMaps,folder:asset\\:emoji_clip,layers:[2]}}"


def settings_of(stage, name, trainer):
    """Clipped in nearly every step; with an average, and an adversary in the first stage."""
    text = FIRST_STAGE if stage == "first" else f"{SECOND} first_stage=runs/first-alone"
    for old, new in {
        "trainer=cpu": f"{trainer} trainer.gradient_clip_val=0.1",
        "max_steps=7": f"max_steps={STEPS}",
        "evaluation.every=3": "evaluation.every=10",
        "global_batch=4": "global_batch=8",
    }.items():
        text = text.replace(old, new)
    return f"{text} accumulate=2 data=shards data.folder=shards name={name}"


@pytest.fixture(scope="module")
def starter():
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def train(tmp_path_factory, starter):
    """Start a training on so many ranks."""
    place = tmp_path_factory.mktemp("ranks")
    make_shards(place / "shards")

    def start(stage, name, ranks=1, way="cpu"):
        trainer = f"trainer={way} trainer.accelerator=cpu trainer.devices={ranks}"
        settings = settings_of(stage, name, trainer)
        if "precision=bf16-true" in way:
            settings = settings.replace("precision=32-true ", "")
        return starter.start(place, settings, ranks=ranks)

    start.place = place
    for stage in ("first", "second"):
        run = start(stage, f"{stage}-alone")
        assert run.wait() == [0], run.said()
    return start


def close(place, name, alone):
    """Weights, averages and losses, to 1e-5."""
    a, b = (last(place / "runs", one).load() for one in (name, alone))
    assert a["global_step"] == b["global_step"] == STEPS
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for key, tensor in b["state_dict"].items():
        assert torch.allclose(a["state_dict"][key], tensor, atol=1e-5, rtol=0), key
    losses = [
        {
            line["step"]: line["train/loss_mean"]
            for line in numbers(place / "runs", one)
            if "train/loss_mean" in line
        }
        for one in (name, alone)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    if name.startswith("first"):  # the contract, measured by all ranks
        record, wanted = (
            LatentStatistics.load(place / "runs" / one / "latents.json") for one in (name, alone)
        )
        assert (record.count, record.smallest) == (wanted.count, wanted.smallest)
        assert record.mean == pytest.approx(wanted.mean, abs=1e-4)
        assert record.std == pytest.approx(wanted.std, abs=1e-4)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", ["first", "second"])
def test_two_ranks_are_one_process(train, stage, way):
    run = train(stage, f"{stage}-{way}", 2, way)
    assert run.wait() == [0, 0], run.said()
    close(train.place, f"{stage}-{way}", f"{stage}-alone")


def test_weights_that_travel_in_bf16_are_kept_in_float32(train):
    """The loss stays within what bf16's eight bits give; no saved number has lost bits."""
    run = train("second", "bf16", 2, "fsdp precision=bf16-true")
    assert run.wait() == [0, 0], run.said()
    state = last(train.place / "runs", "bf16").load()["state_dict"]
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32, name
        if tensor.numel() > 99 and "weight" in name:
            assert not torch.equal(tensor, tensor.bfloat16().float()), name
    ends = [
        [
            line["train/loss_mean"]
            for line in numbers(train.place / "runs", name)
            if "train/loss_mean" in line
        ][-1]
        for name in ("bf16", "second-alone")
    ]
    assert ends[0] == pytest.approx(ends[1], rel=0.02)
    assert ends[0] != pytest.approx(ends[1], rel=1e-5)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_checkpoint_of_two_ranks_in_parts_continues_on_one_and_on_four(train, stage):
    name = f"{stage}-moved"
    run = train(stage, name, 2, "fsdp")
    folder = train.place / "runs" / name
    while not (folder / "metrics.jsonl").exists() and not run.ended():
        time.sleep(0.01)
    run.send(signal.SIGTERM)
    assert run.wait() == [85, 85], run.said()
    stopped = last(train.place / "runs", name)
    assert stopped.shards is not None
    assert stopped.step < STEPS
    shutil.copytree(folder, train.place / f"{stage}-stopped", symlinks=True)
    for ranks, way in ((1, "cpu"), (4, "fsdp")):
        shutil.rmtree(folder)
        shutil.copytree(train.place / f"{stage}-stopped", folder, symlinks=True)
        run = train(stage, name, ranks, way)
        assert run.wait() == [0] * ranks, run.said()
        close(train.place, name, f"{stage}-alone")
    shutil.rmtree(train.place / f"{stage}-stopped")


def test_ranks_with_other_data_are_refused_at_once(train, starter):
    """FAULTS.md, row 19: as when one machine has an old copy of the shards."""
    for rank in range(2):
        make_shards(train.place / f"copy-{rank}", seed=rank)
    trainer = "trainer=ddp trainer.accelerator=cpu trainer.devices=2"
    settings = settings_of("first", "torn", trainer)
    settings = settings.replace("data.folder=shards", "data.folder=copy-${oc.env:RANK}")
    run = starter.start(train.place, settings, ranks=2)
    assert 0 not in run.wait()
    assert "error: data.train: rank 1 on" in run.said()
    assert "has other data than rank 0" in run.said()
    assert not list((train.place / "runs" / "torn" / "checkpoints").glob("step-*"))
