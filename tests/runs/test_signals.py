"""A signal is remembered while training, and ends the process at once before."""

import subprocess
import sys

import pytest

HEAD = "import os, signal, sys; from ldm.runs.signals import stop_signals as s; s.install()\n"
SEND = "os.kill(os.getpid(), signal.SIGUSR1)\n"


def run(script):
    return subprocess.run(
        [sys.executable, "-c", HEAD + script], capture_output=True, text=True, check=False
    )


def test_before_training_there_is_nothing_to_save():
    done = run(SEND)
    assert done.returncode == 75
    assert "nothing to save" in done.stderr


def test_while_training_it_is_remembered_and_a_second_one_waits():
    done = run("s.training = True\n" + SEND + "os.kill(os.getpid(), 15)\nsys.exit(s.received)")
    assert done.returncode == 10
    assert done.stderr.splitlines() == ["SIGUSR1: saving after this step", "SIGTERM: still saving"]


def test_the_third_one_forces():
    done = run("s.training = True\n" + SEND * 3)
    assert done.returncode == 75
    assert "without saving" in done.stderr


@pytest.mark.parametrize("training", [True, False])
def test_a_data_worker_is_not_stopped_by_it(training):
    script = f"s.training = {training}\nif not os.fork():\n    {SEND}    os._exit(s.received)\n"
    assert run(script + "sys.exit(os.wait()[1])").returncode == 0
