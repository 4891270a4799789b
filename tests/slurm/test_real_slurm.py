"""slurm/train.sbatch and sweep.sbatch in a real Slurm of two nodes (`pytest -m slurm`).

Any Slurm will do that `sbatch` here reaches, in which the user may set nodes down: docs/cluster.md
says how to have one on a single machine. The record of the last run stands there too.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import FIRST, SECOND, make_shards, numbers

from ldm.runs.checkpoints import checkpoints

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slurm
TWO = "trainer.accelerator=cpu trainer.devices=2"


def call(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def slurm():
    if shutil.which("sbatch") is None:
        pytest.skip("no Slurm here: `sbatch` is not installed")
    found = subprocess.run(["sinfo", "-h", "-N", "-o", "%N %t"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no Slurm answers: {found.stderr.strip()}")
    if len(found.stdout.split()) < 4:
        pytest.skip(f"a Slurm of two nodes is needed, this one has: {found.stdout.strip()}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, and a first stage."""
    place = tmp_path_factory.mktemp("slurm")
    make_shards(place / "shards")
    command = [sys.executable, str(ROOT / "train.py"), *FIRST.split()]
    command += ["data=shards", "data.folder=shards", "name=first"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def submit(
    place, name, steps, *options, script="train.sbatch", trainer=f"trainer=ddp {TWO}", more=""
):
    """The job's number."""
    settings = SECOND.replace("max_steps=7", f"max_steps={steps}").replace("trainer=cpu ", "")
    settings = settings.replace("evaluation.every=3", f"evaluation.every={steps // 2}")
    settings = settings.replace("checkpoint.every=2", "checkpoint.every=100")
    settings += f" data=shards data.folder=shards first_stage=runs/first name={name} {more}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    environment |= {"TRAIN": str(ROOT / "train.py"), "TRAINER": trainer}
    environment |= {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    words = ["sbatch", "--parsable", "--cpus-per-task=1", "--gpus-per-node=0"]
    words += [f"--output={place}/{name}.log", *options, str(ROOT / "slurm" / script)]
    done = subprocess.run(
        [*words, *settings.split()],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split(";")[0]


def told(job):
    """What Slurm knows of the job."""
    return dict(re.findall(r"(\w+)=(\S*)", call("scontrol", "show", "job", job)))


def steps(place, name):
    file = place / "runs" / name / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return [line["step"] for line in whole if "train/loss" in line]


def wait(place, name, job, until, seconds=900):
    """Until `until()`; or fail with the job's log."""
    end = time.monotonic() + seconds
    while not until():
        log = place / f"{name}.log"
        said = log.read_text() if log.exists() else ""
        assert time.monotonic() < end, f"{told(job)}\n{said}"
        time.sleep(1)


def ends(place, name, job, state, seconds=900):
    wait(place, name, job, lambda: told(job)["JobState"] == state, seconds)
    return told(job)


def the_same(place, one, other):
    """Weights and averages of two runs' ends, and all that they logged."""
    a, b = (checkpoints(place / "runs" / name / "checkpoints")[-1].load() for name in (one, other))
    assert a["global_step"] == b["global_step"]
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    assert numbers(place / "runs", one) == numbers(place / "runs", other)


def test_time_limit_signal_checkpoint_requeue_resume_done(place):
    count = int(os.environ.get("LDM_TEST_STEPS", 2500))  # more than fit in before the signal
    limit = os.environ.get("LDM_TEST_LIMIT", "--time=3 --signal=USR1@120").split()
    options = ["--nodes=1", "--ntasks-per-node=2", *limit]
    job = submit(place, "limited", count, *options)
    ended = ends(place, "limited", job, "COMPLETED", 1800)
    log = (place / "limited.log").read_text()
    assert int(ended["Restarts"]) >= 1
    assert "SIGUSR1: saving after this step" in log
    assert "requeued after exit code 85" in log
    assert "continues at step" in log
    assert steps(place, "limited") == list(range(1, count + 1))
    assert sorted(p.name for p in (place / "runs").iterdir()) == ["first", "limited"]
    record = (place / "runs" / "limited" / "provenance.jsonl").read_text().splitlines()
    assert {json.loads(line)["slurm"]["SLURM_JOB_ID"] for line in record} == {job}


def test_scancel_ends_it_without_requeue_and_with_a_checkpoint(place):
    job = submit(place, "cancelled", 100_000, "--nodes=1", "--ntasks-per-node=2", "--time=10")
    wait(place, "cancelled", job, lambda: len(steps(place, "cancelled")) > 150)
    call("scancel", job)
    ended = ends(place, "cancelled", job, "CANCELLED", 120)
    time.sleep(15)  # longer than a requeued job waits here
    ended = told(job)
    assert ended["JobState"] == "CANCELLED"
    assert ended["Restarts"] == "0"
    kept = checkpoints(place / "runs" / "cancelled" / "checkpoints")[-1]
    assert kept.damage() is None
    assert kept.step >= 100


def test_a_job_over_two_nodes_survives_the_loss_of_one(place):
    options = ["--nodes=2", "--ntasks-per-node=1", "--time=20"]
    trainer = "trainer=ddp trainer.accelerator=cpu trainer.num_nodes=2 trainer.devices=1"
    whole = submit(place, "two-nodes", 600, *options, trainer=trainer)
    ends(place, "two-nodes", whole, "COMPLETED")
    job = submit(place, "lost-node", 600, *options, trainer=trainer)
    wait(place, "lost-node", job, lambda: len(steps(place, "lost-node")) > 250)
    nodes = call("scontrol", "show", "hostnames", told(job)["NodeList"]).split()
    try:
        call("scontrol", "update", f"nodename={nodes[1]}", "state=down", "reason=test")
        wait(place, "lost-node", job, lambda: told(job)["JobState"] != "RUNNING", 120)
    finally:
        call("scontrol", "update", f"nodename={nodes[1]}", "state=resume")
    ended = ends(place, "lost-node", job, "COMPLETED")
    assert int(ended["Restarts"]) >= 1
    assert steps(place, "lost-node") == list(range(1, 601))
    the_same(place, "lost-node", "two-nodes")


def test_a_wrong_key_ends_the_job_at_once(place):
    options = ["--nodes=1", "--ntasks-per-node=2", "--time=5"]
    job = submit(place, "typo", 10, *options, more="global_bach=1")
    ended = ends(place, "typo", job, "FAILED", 300)
    assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0")
    assert "did you mean 'global_batch'" in (place / "typo.log").read_text()


def test_a_job_array_trains_in_folders_of_its_own(place):
    job = submit(place, "sweep", 20, "--array=0-1", script="sweep.sbatch", trainer="cpu")
    wait(place, "sweep", job, lambda: not call("squeue", "-h", "-j", job).strip(), 900)
    rates = []
    for number in (0, 1):
        assert steps(place, f"sweep-{number}") == list(range(1, 21))
        config = (place / "runs" / f"sweep-{number}" / "config.yaml").read_text()
        rates += re.findall(r"lr: ([\d.e-]+)", config)[:1]
    assert len(set(rates)) == 2


def test_hydras_launcher_submits_a_sweep_whose_jobs_are_requeued(place):
    pytest.importorskip("submitit", reason="needs ldm[slurm]")
    count = 300
    settings = SECOND.replace("max_steps=7", f"max_steps={count}").replace("trainer=cpu ", "")
    settings = settings.replace("evaluation.every=3", "evaluation.every=300")
    settings += f" data=shards data.folder=shards first_stage=runs/first trainer=ddp {TWO}"
    launcher = "tasks_per_node=2 gpus_per_node=0 cpus_per_task=1 timeout_min=20"
    words = [f"hydra.launcher.{word}" for word in launcher.split()]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=slurm", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"MASTER_ADDR": "127.0.0.1"}
    with (place / "launcher.log").open("w") as log:
        sweep = subprocess.Popen(
            [*command, *settings.split(), "name=sub-a,sub-b"],
            cwd=place,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 900
        while len(steps(place, "sub-a")) < 50:
            assert time.monotonic() < end, (place / "launcher.log").read_text()
            time.sleep(0.5)
        record = (place / "runs" / "sub-a" / "provenance.jsonl").read_text().splitlines()
        job = json.loads(record[0])["slurm"]["SLURM_JOB_ID"]
        call("scancel", "--signal=USR2", job)
        for name in ("sub-a", "sub-b"):
            wait(place, name, job, lambda name=name: len(set(steps(place, name))) == count)
        ends(place, "sub-a", job, "COMPLETED")
    finally:
        sweep.terminate()
        sweep.wait(60)
    assert int(told(job)["Restarts"]) == 1
    for name in ("sub-a", "sub-b"):
        assert steps(place, name) == list(range(1, count + 1))
