"""Checkpoint folders: whole or absent, ordered by step, damaged ones set aside."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm.runs.checkpoints import (
    STATE,
    Checkpoint,
    checkpoint_named,
    checkpoints,
    newest_good,
    prune,
    run_named,
    tidy,
    write_checkpoint,
)


def save(value):
    return lambda draft: torch.save({"value": torch.tensor(value)}, draft / STATE)


def test_a_written_one_is_whole_and_last_points_at_it(tmp_path):
    for step in (10, 20):
        write_checkpoint(tmp_path, step, save(step))
    assert [c.step for c in checkpoints(tmp_path)] == [10, 20]
    assert all(c.damage() is None for c in checkpoints(tmp_path))
    assert (tmp_path / "last").resolve().name == "step-00000020"
    assert Checkpoint(tmp_path / "last", 20).load()["value"] == 20


def test_a_failing_write_leaves_nothing_and_the_old_one_good(tmp_path):
    write_checkpoint(tmp_path, 10, save(10))

    def fail(draft):
        (draft / STATE).write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 20, fail)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "step-00000010"]
    assert checkpoints(tmp_path)[0].damage() is None


def test_a_killed_write_is_never_taken_for_a_checkpoint(tmp_path):
    write_checkpoint(tmp_path, 10, save(10))
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from ldm.runs.checkpoints import write_checkpoint\n"
        "def write(draft):\n"
        "    (draft / 'state.ckpt').write_bytes(b'x' * 1000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_checkpoint(Path(sys.argv[1]), 20, write)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert [c.step for c in checkpoints(tmp_path)] == [10]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest"])
def test_a_damaged_newest_is_set_aside_for_the_older(tmp_path, damage):
    write_checkpoint(tmp_path, 10, save(10))
    bad = write_checkpoint(tmp_path, 20, save(20))
    content = bytearray(bad.state.read_bytes())
    if damage == "truncate":
        bad.state.write_bytes(content[:-10])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        bad.state.write_bytes(content)
    elif damage == "delete":
        bad.state.unlink()
    else:
        (bad.path / "manifest.json").write_text("{")
    warning, good = newest_good(tmp_path)
    assert "step-00000020" in warning
    assert good.step == 10
    assert len(list((tmp_path / "corrupt").iterdir())) == 1


def test_a_run_and_its_checkpoints_are_named_as_people_name_them(tmp_path, monkeypatch):
    run = tmp_path / "step-by-step"
    folder = run / "checkpoints"
    folder.mkdir(parents=True)
    for step in (10, 20):
        write_checkpoint(folder, step, save(step))
    assert run_named(run) == run
    assert checkpoint_named(run) is None
    for name, step in (("step-00000010", 10), ("last", 20)):
        assert run_named(folder / name) == run
        assert checkpoint_named(folder / name) == Checkpoint(folder / f"step-{step:08d}", step)
    monkeypatch.chdir(folder)
    assert run_named(Path("step-00000010")) == run
    (folder / "step-00000010" / STATE).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"step-00000010.*another size.*name another checkpoint"):
        checkpoint_named(Path("step-00000010"))


def test_order_is_by_step_whatever_the_clock_said(tmp_path):
    for step in (10, 20):
        write_checkpoint(tmp_path, step, save(step))
    os.utime(tmp_path / "step-00000010", (2e9, 2e9))
    assert next(iter(newest_good(tmp_path))).step == 20


def test_prune_keeps_the_newest_and_the_marked(tmp_path):
    for step in range(10, 70, 10):
        write_checkpoint(tmp_path, step, save(step))
    prune(tmp_path, keep=2, keep_every=30)
    assert [c.step for c in checkpoints(tmp_path)] == [30, 50, 60]


def test_files_in_folders_are_in_the_manifest_too(tmp_path):
    def write(draft):
        (draft / "sharded").mkdir()
        (draft / "sharded" / "part").write_bytes(b"tensor")
        save(1)(draft)

    written = write_checkpoint(tmp_path, 10, write)
    assert written.damage() is None
    (written.path / "sharded" / "part").write_bytes(b"tensoR")
    assert "sharded/part" in written.damage()


def test_a_disk_without_room_for_another_is_told_before_it_is_written(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 10, save(10))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OSError, match="are needed"):
        write_checkpoint(tmp_path, 20, save(20))
    assert [c.step for c in checkpoints(tmp_path)] == [10]


def test_a_rewind_sets_later_ones_aside_and_killed_writes_go(tmp_path):
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step, save(step))
    (tmp_path / ".draft-00000040-1").mkdir()
    tidy(tmp_path, after=10)
    assert [c.step for c in checkpoints(tmp_path)] == [10]
    assert len(list((tmp_path / "abandoned").iterdir())) == 2
    assert not list(tmp_path.glob(".draft*"))
