"""A checkpoint's weights as one file, whatever wrote them."""

import argparse

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ldm.commands.consolidate import consolidate
from ldm.runs.checkpoints import SHARDS, STATE, write_checkpoint
from ldm.runs.shards import write_shards

WEIGHTS = {
    "network.a": torch.arange(6.0).view(2, 3),
    "average.a": torch.arange(6.0).view(2, 3) + 1,
    "average.b": torch.ones(2),
}


def run(tmp_path, sharded=False, weights=WEIGHTS):
    """A run with checkpoints of steps 10 and 20; the newer is the one with the weights."""
    folder = tmp_path / "run" / "checkpoints"

    def write(state):
        def fill(draft):
            tensors = {"state_dict": state, "optimizer": {}}
            if sharded:
                write_shards(draft / SHARDS, tensors)
            torch.save({"global_step": 20} | ({} if sharded else tensors), draft / STATE)

        return fill

    write_checkpoint(folder, 10, write({name: t * 0 for name, t in weights.items()}))
    write_checkpoint(folder, 20, write(dict(weights)))
    return tmp_path / "run"


def call(checkpoint, out=None, weights="average"):
    return consolidate(argparse.Namespace(checkpoint=str(checkpoint), out=out, weights=weights))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_newest_average_is_one_file(tmp_path, capsys, sharded):
    folder = run(tmp_path, sharded)
    assert call(folder) == 0
    file = folder / "weights-00000020.safetensors"
    found = load_file(file)
    assert found.keys() == {"a", "b"}
    assert torch.equal(found["a"], WEIGHTS["average.a"])
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"run": "run", "step": "20", "weights": "average"}
    assert "2 tensors, 0.00 M numbers" in capsys.readouterr().out


def test_a_certain_checkpoint_and_all_names(tmp_path):
    folder, out = run(tmp_path), tmp_path / "out.safetensors"
    assert call(folder / "checkpoints" / "step-00000010", str(out), "all") == 0
    found = load_file(out)
    assert found.keys() == WEIGHTS.keys()
    assert not found["network.a"].any()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a run with a checkpoint nor"):
        call(tmp_path)
    folder = run(tmp_path, weights={"network.a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"--weights=average.*has none; set --weights=all"):
        call(folder)
    (folder / "checkpoints" / "step-00000020" / STATE).write_bytes(b"")
    with pytest.raises(ValueError, match="name another checkpoint"):
        call(folder)
