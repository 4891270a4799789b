"""A run folder has one writer; a dead one's lock is taken over, a live one's never."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.runs.lock import RunLock


def plant(folder, **holder):
    found = {"host": "elsewhere", "pid": 1, "job": "", "restarts": 0, "since": "noon", **holder}
    (folder / "lock").write_text(json.dumps(found))


def test_a_second_one_is_refused_by_the_holders_name_and_the_first_one_ends_cleanly(tmp_path):
    with (
        RunLock(tmp_path),
        pytest.raises(ValueError, match=rf"process {os.getpid()} on .* rm "),
        RunLock(tmp_path),
    ):
        pass
    assert not (tmp_path / "lock").exists()


def test_a_killed_holder_of_this_host_is_succeeded(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from ldm.runs.lock import RunLock\n"
        "RunLock(Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert (tmp_path / "lock").exists()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_process_that_ended_and_was_not_asked_for_holds_nothing(tmp_path):
    with subprocess.Popen(["true"]) as ended:
        stat = Path(f"/proc/{ended.pid}/stat")
        while stat.exists() and ") Z " not in stat.read_text():
            time.sleep(0.01)
        plant(tmp_path, host=platform.node(), pid=ended.pid)
        with RunLock(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_another_hosts_heart_decides(tmp_path):
    plant(tmp_path)
    with pytest.raises(ValueError, match="elsewhere"), RunLock(tmp_path):
        pass
    then = time.time() - 700
    os.utime(tmp_path / "lock", (then, then))
    with RunLock(tmp_path):
        pass


def test_a_requeued_job_takes_over_from_its_earlier_start(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    plant(tmp_path, job="4711")
    with pytest.raises(ValueError, match="job 4711"), RunLock(tmp_path):
        pass  # not a later start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with RunLock(tmp_path):
        pass
    plant(tmp_path, job="4712")
    with pytest.raises(ValueError, match="job 4712"), RunLock(tmp_path):
        pass


def test_the_heart_beats(tmp_path):
    with RunLock(tmp_path, beat=0.02):
        os.utime(tmp_path / "lock", (0, 0))
        for _ in range(100):
            time.sleep(0.02)
            if (tmp_path / "lock").stat().st_mtime > 0:
                break
        assert (tmp_path / "lock").stat().st_mtime > 0


def test_a_lock_that_was_taken_over_is_not_removed_by_its_old_holder(tmp_path):
    with RunLock(tmp_path):
        plant(tmp_path, pid=2)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == 2
