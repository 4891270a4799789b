"""One training over two hosts, which are network namespaces (`pytest -m hosts`, as root).

Each has a `torchrun --nnodes 2` of its own; one of them dies, both are started again. The record
is in docs/resume.md.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from started import Starter
from tiny import FIRST, SECOND, last, make_shards, numbers, same

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.hosts
STEPS = 400
HOSTS = {"ldm-test-0": "10.211.77.1", "ldm-test-1": "10.211.77.2"}


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def hosts():
    """Two namespaces with a wire between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the `ip` command (Debian: iproute2)")
    made = [ip("netns", "add", name) for name in HOSTS]
    try:
        if any(one.returncode for one in made):
            pytest.skip(f"no network namespaces here: {made[0].stderr}{made[1].stderr}")
        ends = [f"wire{number}" for number in range(2)]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for (name, address), end in zip(HOSTS.items(), ends, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield dict(zip(HOSTS, ends, strict=True))
    finally:
        for name in HOSTS:
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, a first stage, and the second stage as it goes undisturbed on one host."""
    place = tmp_path_factory.mktemp("hosts")
    make_shards(place / "shards")
    starter = Starter()
    first = starter.start(place, f"{FIRST} data=shards data.folder=shards name=first")
    assert first.wait() == [0], first.said()
    two = "trainer=ddp trainer.accelerator=cpu trainer.devices=2"
    run = starter.start(place, settings_of("alone", two), ranks=2)
    assert run.wait(600) == [0, 0], run.said()
    starter.close()
    return place


def settings_of(name, trainer):
    text = SECOND.replace("trainer=cpu", trainer).replace("max_steps=7", f"max_steps={STEPS}")
    text = text.replace("checkpoint.every=2", "checkpoint.every=50")
    text = text.replace("evaluation.every=3", "evaluation.every=200")
    return f"{text} first_stage=runs/first data=shards data.folder=shards name={name}"


def start(place, hosts):
    """A torchrun on each host, as one would type it there."""
    trainer = "trainer=ddp trainer.accelerator=cpu trainer.devices=1 trainer.num_nodes=2"
    started = []
    for number, (host, wire) in enumerate(hosts.items()):
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": wire, "TP_SOCKET_IFNAME": wire}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
        command += ["--master-addr", HOSTS["ldm-test-0"], "--master-port", "29577"]
        command += [str(ROOT / "train.py"), *settings_of("both", trainer).split()]
        with (place / f"host-{number}.txt").open("ab") as log:
            started.append(
                subprocess.Popen(
                    command,
                    cwd=place,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    return started


def said(place):
    return "\n".join((place / f"host-{number}.txt").read_text() for number in range(2))


def steps(place):
    file = place / "runs" / "both" / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def test_a_host_dies_and_both_start_again(hosts, place):
    both = start(place, hosts)
    end = time.monotonic() + 600
    while steps(place) < 120:
        assert time.monotonic() < end, said(place)
        assert all(one.poll() is None for one in both), said(place)
        time.sleep(0.05)
    for pid in ip("netns", "pids", "ldm-test-1").stdout.split():  # the host's power fails
        os.kill(int(pid), signal.SIGKILL)
    died = time.monotonic()
    assert both[1].wait(10) == -signal.SIGKILL
    assert both[0].wait(60) != 0
    print(f"the other host ended {time.monotonic() - died:.1f} s after")
    assert "rank 0 lost another rank" in said(place)
    again = start(place, hosts)
    assert [one.wait(600) for one in again] == [0, 0], said(place)
    assert "continues at step" in said(place)
    same(last(place / "runs", "both"), last(place / "runs", "alone"))
    assert numbers(place / "runs", "both") == numbers(place / "runs", "alone")
