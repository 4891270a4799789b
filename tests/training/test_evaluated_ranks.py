"""Two ranks, a time-out of 10 seconds, and an evaluation that takes longer and fails in part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_in_process import run
from tiny import FIRST, last, make_shards, same

PROGRAM = Path(__file__).with_name("evaluated_ranks.py")
pytestmark = pytest.mark.slow


def train(root, name, strategy, watched):
    places = f"{PROGRAM.parents[2]}{os.pathsep}{PROGRAM.parent}"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(root), name, strategy, watched],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (root / name / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "sample/fd_clip" in line]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluated")
    make_shards(root / "shards")
    assert run(root, "first", FIRST) == 0
    return root


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_long_evaluation_that_fails_in_part_changes_nothing(root, strategy):
    """Three prompts on two ranks are uneven too, which under FSDP must not leave one rank waiting
    in the other's pass."""
    looks = train(root, f"{strategy}-watched", strategy, "watched")
    assert [line["step"] for line in looks] == [3, 6, 7]
    for line in looks:
        assert "sample/clip_score" in line  # late, and there
        assert "sample/recall@1" not in line  # failed on one rank
    assert train(root, f"{strategy}-unwatched", strategy, "unwatched") == []
    same(last(root, f"{strategy}-watched"), last(root, f"{strategy}-unwatched"))
