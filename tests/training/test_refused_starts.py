"""A start that is refused names its key and leaves no folder; what it cannot know ends early."""

import json

import pytest
from run_in_process import run
from tiny import FIRST, make_shards

from ldm.commands.errors import FAILED
from ldm.commands.parts import AutoencoderStage
from ldm.runs.checkpoints import best_of, checkpoints
from ldm.runs.lock import RunLock

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("refused")
    make_shards(root / "shards")
    return root


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu"),
        ("evaluation.metrics=[fd_clip] evaluation.clip=nowhere", "fd_clip"),
        ("resume=must", "resume=must"),
        ("resume=sometimes", "resume=sometimes"),
    ],
)
def test_a_refused_start_leaves_no_folder(root, settings, key):
    with pytest.raises((ValueError, FileNotFoundError), match=key):
        run(root, "refused", f"{FIRST} {settings}")
    assert [path.name for path in root.iterdir() if path.name != "shards"] == []


def test_a_refused_start_leaves_the_folder_that_was_there(root):
    folder = root / "there"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="resume=must"):
        run(root, "there", f"{FIRST} resume=must")
    assert (folder / "notes.txt").read_text() == "mine"
    with RunLock(folder), pytest.raises(ValueError, match="is in use by process"):
        run(root, "there", FIRST)


def test_a_number_that_nobody_measures_ends_the_training_at_its_first_validation(
    root, monkeypatch, capsys
):
    monkeypatch.setattr(AutoencoderStage, "callbacks", lambda *_: [])
    monkeypatch.setattr(AutoencoderStage, "finish", lambda *_: None)
    settings = FIRST.replace("evaluation.every=3", "evaluation.every=1") + " trainer.max_steps=3"
    assert run(root, "best", f"{settings} checkpoint.best=val/nothing") == FAILED
    said = capsys.readouterr().err
    assert "checkpoint.best=val/nothing: not measured; set null or one of: val/" in said
    assert "val/psnr" in said
    assert [one.step for one in checkpoints(root / "best" / "checkpoints")] == [1]
    state = json.loads((root / "best" / "state.json").read_text())
    assert state["state"] == "failed"
    # In a job, a machine that lacks what the run was trained on is to be left for another.
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert run(root, "best", f"{settings} trainer.accelerator=tpu") == 1
    assert "error: trainer.accelerator=tpu" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_JOB_ID")
    # With a number that there is, the same run goes on from there.
    assert run(root, "best", f"{settings} checkpoint.best=-val/psnr") == 0
    best = best_of(root / "best" / "checkpoints")
    assert best is not None
    assert best.step in (2, 3)
