"""What a process learns of its job from the environment, with a fake `scontrol` in the path."""

import pytest

from ldm.runs.processes import check_address, job_end, rank, requeue, restarts

VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "SUBMITIT_EXECUTOR")
SLURM = ("PROCID", "JOB_ID", "RESTART_COUNT", "ARRAY_JOB_ID", "ARRAY_TASK_ID")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    for name in (*VARIABLES, *(f"SLURM_{name}" for name in SLURM), "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """The lines of what was asked of it."""
    program = tmp_path / "scontrol"
    answer = 'echo "   StartTime=2026-01-01T00:00:00 EndTime=2026-01-02T03:04:05 Deadline=N/A"'
    program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n[ "$1" = show ] && {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return lambda: (tmp_path / "asked").read_text().splitlines()


def test_ranks_meet_only_where_the_host_has_a_name(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    check_address()  # one process alone meets nobody
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(ValueError, match=r"MASTER_ADDR=nowhere\.invalid: .* set MASTER_ADDR to"):
        check_address()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    check_address()


def test_the_end_of_the_job_is_slurms(monkeypatch, scontrol):
    assert job_end() is None
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert job_end() == "2026-01-02T03:04:05"
    assert scontrol() == ["show job 4711"]


def test_without_scontrol_nobody_knows(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_end() is None


def test_it_requeues_itself_under_submitit_and_nowhere_else(monkeypatch, scontrol):
    monkeypatch.setenv("SLURM_JOB_ID", "4713")
    requeue()
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_PROCID", "1")
    requeue()
    monkeypatch.setenv("SLURM_PROCID", "0")
    requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    requeue()
    assert scontrol() == ["requeue 4713", "requeue 4711_2"]


def test_rank_and_restarts_are_those_of_the_launcher(monkeypatch):
    assert (rank(), restarts()) == (0, 0)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert (rank(), restarts()) == (3, 2)
    monkeypatch.setenv("RANK", "5")
    assert rank() == 5
