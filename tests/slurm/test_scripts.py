"""The batch scripts' decisions, with fake `srun` and `scontrol` in the path."""

import os
import subprocess
from pathlib import Path

import pytest

from ldm.runs.processes import tell_final

SLURM = Path(__file__).parents[2] / "slurm"
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "n[0-1]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_ARRAY_JOB_ID": "4700",
    "SLURM_ARRAY_TASK_ID": "2",
}


def run(tmp_path, script, code, *arguments, requeue=0):
    """The script's end, and what it called."""
    (tmp_path / "bin").mkdir()
    calls = tmp_path / "calls"
    programs = {
        "srun": f'echo "srun $*" >> {calls}; exit {code}',
        "scontrol": f'[ "$1" = show ] && echo n0 && exit; echo "$*" >> {calls}; exit {requeue}',
    }
    for name, body in programs.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SLURM / script), *arguments],
        env={"PATH": path, **JOB},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, calls.read_text().splitlines()


@pytest.mark.parametrize("script", ["train.sbatch", "sweep.sbatch"])
@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (2, False), (3, False), (85, True), (1, True), (137, True)]
)
def test_it_is_requeued_only_where_that_helps(tmp_path, script, code, requeued):
    done, calls = run(tmp_path, script, code, "experiment=x", "name=y")
    assert done.returncode == code
    assert any(call.startswith("requeue") for call in calls) == requeued


@pytest.mark.parametrize("script", ["train.sbatch", "sweep.sbatch"])
@pytest.mark.parametrize("code", [2, 3])
def test_the_first_rank_that_gives_up_counts_and_not_the_one_that_was_killed_for_it(
    tmp_path, script, code
):
    done, calls = run(tmp_path, script, f"143 $(echo {code} > $LDM_FINAL)", "name=y")
    assert done.returncode == code
    assert not any(call.startswith("requeue") for call in calls)
    assert not list(tmp_path.glob(".final*"))


def test_a_training_leaves_only_codes_that_another_start_will_not_change(tmp_path, monkeypatch):
    file = tmp_path / "final"
    monkeypatch.setenv("LDM_FINAL", str(file))
    for code in (0, 1, 75, 85):
        tell_final(code, (2, 3))
        assert not file.exists()
    tell_final(3, (2, 3))
    assert file.read_text() == "3\n"
    monkeypatch.delenv("LDM_FINAL")
    tell_final(2, (2, 3))
    assert file.read_text() == "3\n"


def test_where_it_cannot_be_requeued_it_says_how_to_go_on(tmp_path):
    done, _ = run(tmp_path, "train.sbatch", 85, "experiment=x", "name=y", requeue=1)
    assert done.returncode == 85
    assert "sbatch" in done.stderr
    assert "experiment=x name=y" in done.stderr


def test_ranks_and_nodes_come_from_the_job(tmp_path):
    _, calls = run(tmp_path, "train.sbatch", 0, "name=y")
    assert "name=y trainer=ddp trainer.num_nodes=2 trainer.devices=4" in calls[0]


def test_each_task_of_a_sweep_has_settings_and_a_folder_of_its_own(tmp_path):
    _, calls = run(tmp_path, "sweep.sbatch", 85, "name=y")
    assert "module.optimizer.lr=4e-3" in calls[0]
    assert "name=y-2" in calls[0]
    assert calls[1] == "requeue 4700_2"
