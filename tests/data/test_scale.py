"""A million samples without a million pictures: the index is real, its shard is mostly a hole."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from shard_files import sample, write_shards, write_tar

from ldm.data import ShardData, training_batches
from ldm.data.index import Header, ShardIndex, build_index


def hollow_shard(folder, number, count):
    """A shard whose `count` samples all lie at the bytes of one small picture."""
    path = write_tar(folder / f"train-{number:05d}.tar", sample(number))
    one = build_index(path)
    records = np.repeat(one.records, count)
    header = Header(bytes=one.header.bytes, sha256=one.header.sha256, samples=count)
    ShardIndex(header, records, one.keys).write(path.with_name(path.name + ".index"))


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    folder = tmp_path_factory.mktemp("million")
    for number in range(100):
        hollow_shard(folder, number, 10_000)
    return str(folder / "train-*.tar")


def test_resuming_takes_less_than_a_second_at_any_position(million):
    """Processor seconds from nothing to the first rows, in a data set of a million."""
    taken = []
    for position in (0, 499_968, 999_936, 123_456_768, 10**12 // 64 * 64):
        start = time.process_time()
        data = ShardData(million, 16)
        batches = training_batches(
            data, global_batch=64, rank=0, world=1, start=position, seed=0, workers=0
        )
        next(iter(batches))
        taken.append(time.process_time() - start)
    assert len(data) == 1_000_000
    assert max(taken) < 1


READ = """
import itertools, resource, sys
from ldm.data import ShardData, training_batches

class Measured(ShardData):
    def read(self, rows):
        batch, faults = super().read(rows)
        batch["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return batch, faults

data = Measured(sys.argv[1] + "/train-000[01]?.tar", 16)
assert len(data) == 200_000
batches = training_batches(data, global_batch=64, rank=0, world=1, start=0, seed=0, workers=1)
print(max(batch["memory"] for batch in itertools.islice(batches, 400)))
"""


def test_a_worker_stays_under_500_mib(million):
    """200,000 samples, windows of 10,000, and two and a half of them read."""
    folder = os.path.dirname(million)
    done = subprocess.run(
        [sys.executable, "-c", READ, folder], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 500 * 1024  # kB, Python and torch included


TRAIN = """
import sys
from ldm.data import ShardData, training_batches

shards, start, workers, log = sys.argv[1:]
data = ShardData(shards, 16)
batches = training_batches(
    data, global_batch=4, rank=0, world=1, start=int(start), seed=7, workers=int(workers)
)
with open(log, "a") as file:
    for batch in batches:
        print(*batch["key"], file=file, flush=True)
"""


def lines_of(log):
    return log.read_text().splitlines() if log.is_file() else []


def test_kill_9_loses_and_repeats_nothing(tmp_path):
    """Killed twice within the second epoch of 200; its log is the checkpoint. Seen once each."""
    shards = write_shards(tmp_path, [90, 60, 50])
    log = tmp_path / "log"
    for workers, until in [(1, 60), (0, 75), (2, 110)]:
        start = 4 * len(lines_of(log))
        command = [sys.executable, "-c", TRAIN, shards, str(start), str(workers), str(log)]
        with subprocess.Popen(command, start_new_session=True) as process:
            deadline = time.monotonic() + 60
            while len(lines_of(log)) < until and time.monotonic() < deadline:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        log.write_text("".join(whole))
    keys = [key for line in lines_of(log) for key in line.split()]
    assert len(keys) >= 440
    for epoch in range(len(keys) // 200):
        assert len(set(keys[200 * epoch : 200 * epoch + 200])) == 200
