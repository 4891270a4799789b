"""What users see when a training goes wrong, in processes that really do; the record is in
docs/resume.md."""

import os
import signal
import stat
import time
from pathlib import Path

import pytest
from started import Starter
from tiny import FIRST, make_shards

from ldm.runs.checkpoints import checkpoints

pytestmark = pytest.mark.slow
ONE = FIRST + " data=shards data.folder=shards evaluation.every=1000"
LONG = ONE.replace("max_steps=7", "max_steps=4000").replace(
    "checkpoint.every=2", "checkpoint.every=5"
)
TWO = "trainer={} trainer.accelerator=cpu trainer.devices=2"


@pytest.fixture(scope="module")
def starter():
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("faults")
    make_shards(place / "shards")
    return place


def wait_for(run, condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert not run.ended(), run.said()
        assert time.monotonic() < end, run.said()
        time.sleep(0.01)


def lines(place, name):
    file = place / "runs" / name / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def catches(pid, number):
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_signal_while_it_starts_means_start_again(place, starter):
    run = starter.start(place, LONG + " name=starting")
    wait_for(run, lambda: catches(run.pids[0], signal.SIGUSR1))
    run.send(signal.SIGUSR1)
    assert run.wait() == [75]
    assert "SIGUSR1 before training began: nothing to save; start it again" in run.said()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_death_of_a_rank_ends_the_other_within_a_minute(place, starter, way):
    settings = LONG.replace("trainer=cpu", TWO.format(way)) + f" name=death-{way}"
    run = starter.start(place, settings, ranks=2)
    wait_for(run, lambda: lines(place, f"death-{way}") > 7)
    run.send(signal.SIGKILL, [1])
    assert run.wait(60) == [75, -signal.SIGKILL]
    assert "rank 0 lost another rank" in run.said()
    assert "Traceback" in (place / "runs" / f"death-{way}" / "failures" / "rank-0.txt").read_text()
    assert checkpoints(place / "runs" / f"death-{way}" / "checkpoints")


def test_an_error_on_one_rank_is_kept_as_the_first_cause(place, starter):
    settings = LONG.replace("trainer=cpu", TWO.format("ddp")) + " name=error"
    fault = {"rank": 1, "fault": "raising", "step": 4, "error": "RuntimeError"}
    run = starter.start(place, settings, ranks=2, fault=fault)
    assert run.wait() == [75, 1]
    failures = place / "runs" / "error" / "failures"
    assert "RuntimeError: injected" in (failures / "rank-1.txt").read_text()
    assert f"rank 0 lost another rank; {failures.relative_to(place)} tells why" in run.said()


def test_out_of_memory_says_what_to_set(place, starter):
    fault = {"rank": 0, "fault": "raising", "step": 4, "error": "OutOfMemoryError"}
    run = starter.start(place, LONG + " name=memory", fault=fault)
    assert run.wait() == [3]
    told = "out of memory on rank 0 with 4 pictures of 32 pixels at once; set accumulate=2 for 2"
    assert told in run.said()


def test_a_job_that_dies_three_times_at_one_step_is_not_tried_again(place, starter):
    fault = {"rank": 0, "fault": "raising", "step": 7, "error": "RuntimeError"}
    for count in range(3):
        again = str(count)
        run = starter.start(
            place, LONG + " name=loop", fault=dict(fault), TORCHELASTIC_RESTART_COUNT=again
        )
        assert run.wait() == [1]
    run = starter.start(place, LONG + " name=loop", TORCHELASTIC_RESTART_COUNT="3")
    assert run.wait() == [3]
    told = (
        "the job ended 3 times at step 5 without getting further; the last time: RuntimeError: in"
    )
    assert told in run.said()


def test_a_second_process_in_a_folder_is_refused_and_the_first_one_goes_on(place, starter):
    first = starter.start(place, LONG + " name=taken")
    wait_for(first, lambda: lines(place, "taken") > 2)
    second = starter.start(place, LONG + " name=taken")
    assert second.wait() == [2]
    assert f"is in use by process {first.pids[0]} on" in second.said()
    before = lines(place, "taken")
    wait_for(first, lambda: lines(place, "taken") > before)
    first.send(signal.SIGTERM)
    assert first.wait() == [85]


def test_a_full_disk_on_any_rank_costs_a_warning(place, starter):
    settings = ONE.replace("trainer=cpu", TWO.format("fsdp")) + " name=full"
    fault = {"rank": 1, "fault": "disk_full", "times": 1}
    run = starter.start(place, settings, ranks=2, fault=fault)
    assert run.wait() == [0, 0], run.said()
    assert "the checkpoint could not be written" in run.said()
    assert "training goes on" in run.said()
    assert [c.step for c in checkpoints(place / "runs" / "full" / "checkpoints")] == [6, 7]
    assert not list((place / "runs" / "full" / "checkpoints").glob(".draft-*"))


def test_nothing_is_left_running(place, starter):
    run = starter.start(place, LONG + " name=workers workers=2")
    wait_for(run, lambda: lines(place, "workers") > 2)
    run.send(signal.SIGTERM)
    assert run.wait() == [85]
    end = time.monotonic() + 10  # a data worker looks for its parent every five seconds
    while members := in_session(run.pids[0]):
        assert time.monotonic() < end, members
        time.sleep(0.1)


def in_session(leader):
    """Processes that the one which led this session has left."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == leader:
                found.append(folder.name)
        except ProcessLookupError:
            continue
    return found


def test_a_master_that_no_name_server_knows_is_named(place, starter):
    settings = LONG.replace("trainer=cpu", TWO.format("ddp")) + " name=nowhere"
    run = starter.start(place, settings, ranks=2, MASTER_ADDR="nowhere.invalid")
    assert run.wait() == [2, 2]
    assert "MASTER_ADDR=nowhere.invalid" in run.said()


def test_the_folder_is_the_users_own_and_keeps_no_secret(place, starter):
    run = starter.start(
        place, ONE + " name=secret", HF_TOKEN="canary-4711", WANDB_API_KEY="canary-12"
    )
    assert run.wait() == [0], run.said()
    folder = place / "runs" / "secret"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.rglob("*"):
        assert not file.is_file() or b"canary" not in file.read_bytes(), file
