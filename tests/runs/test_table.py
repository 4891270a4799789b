"""The table of runs: states are truthful, thousands of runs take a moment, half-written files do
no harm."""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time

import pytest
import yaml

from ldm.runs.compare import differing, side_by_side
from ldm.runs.state import SILENCE, read_state, recorded
from ldm.runs.table import history, newest_metrics, read_row, rows
from ldm.runs.weights import leftovers

CONFIG = {"name": "x", "seed": 0, "module": {"optimizer": {"lr": 1e-3}}, "stage_name": "diffusion"}


def make_run(folder, config=CONFIG, steps=3):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = [json.dumps({"step": s, "train/loss": 1 / (s + 1)}) for s in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_run_that_ends_has_finished(tmp_path):
    with recorded(tmp_path, {"max_steps": 4}):
        assert read_state(tmp_path).name == "running"
    state = read_state(tmp_path)
    assert state.name == "finished"
    assert state.facts["max_steps"] == 4
    assert state.began <= state.ended


def test_a_run_that_raises_has_failed_with_its_last_line(tmp_path):
    with pytest.raises(RuntimeError), recorded(tmp_path, {}):
        raise RuntimeError("many words\nCUDA out of memory")
    state = read_state(tmp_path)
    assert (state.name, state.error) == ("failed", "RuntimeError: CUDA out of memory")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(3), "interrupted"),
        (SystemExit(0), "finished"),
    ],
)
def test_a_run_that_is_told_to_stop(tmp_path, error, name):
    with pytest.raises(type(error)), recorded(tmp_path, {}):
        raise error
    assert read_state(tmp_path).name == name


def test_a_killed_run_is_interrupted(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from ldm.runs.state import recorded\n"
        "with recorded(Path(sys.argv[1]), {}): print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    process.stdout.readline()
    assert read_state(tmp_path).name == "running"
    process.kill()
    process.communicate()
    assert read_state(tmp_path).name == "interrupted"


def test_a_silent_run_on_another_machine_is_stale(tmp_path):
    record = {"state": "running", "pid": 1, "host": "elsewhere", "began": time.time(), "facts": {}}
    (tmp_path / "state.json").write_text(json.dumps(record))
    (tmp_path / "heartbeat").touch()
    assert read_state(tmp_path).name == "running"
    assert read_state(tmp_path, now=time.time() + SILENCE + 1).name == "stale"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"state": "running"}', "\x00\xff"])
def test_a_half_written_record_is_unknown(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    assert read_state(tmp_path).name == "unknown"


def test_only_the_writing_rank_writes(tmp_path):
    with recorded(tmp_path, {}, writes=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_the_newest_of_each_name(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "a": 1.0, "b": 5.0}, {"step": 2, "a": 2.0}, {"step": 3, "c": "nan"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "a"')
    assert newest_metrics(path) == ({"a": 2.0, "b": 5.0}, 3)
    assert history(path) == {"a": ([1, 2], [1.0, 2.0]), "b": ([1], [5.0])}


def test_a_step_that_was_trained_twice_counts_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 9.0}\n{"step": 2, "a": 2.0}\n')
    assert history(path)["a"] == ([1, 2], [1.0, 2.0])


def test_two_thousand_runs_in_two_seconds(tmp_path):
    for number in range(2000):
        run = make_run(tmp_path / f"run-{number:04d}", steps=40)
        record = {"state": "finished", "pid": 1, "host": platform.node(), "began": 0.0, "facts": {}}
        (run / "state.json").write_text(json.dumps(record))
    began = time.process_time()  # of this process: the machine may be busy with others
    found = list(rows(tmp_path))
    seconds = time.process_time() - began
    assert len(found) == 2000
    assert {row.state.name for row in found} == {"finished"}
    assert all(row.step == 40 and row.stage == "diffusion" for row in found)
    assert seconds < 2


def write_for_a_while(folder):
    for _ in range(40):
        with recorded(folder, {}), (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 1, "a": 1.0}\n')
    os._exit(0)


def test_writers_at_the_same_time_do_no_harm(tmp_path):
    run = make_run(tmp_path / "run")
    start = multiprocessing.get_context("fork").Process
    writers = [start(target=write_for_a_while, args=(run,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        row = read_row(run)
        assert row is not None
        assert row.state.name in ("running", "finished", "unknown", "interrupted")
    for writer in writers:
        writer.join()
    assert read_state(run).name == "finished"


def test_what_is_no_run_is_no_row(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    make_run(tmp_path / "run")
    assert [row.name for row in rows(tmp_path)] == ["run"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(rows(tmp_path / "nowhere"))


def test_exactly_the_differences(tmp_path):
    other = {**CONFIG, "name": "y", "module": {"optimizer": {"lr": 2e-3, "beta": 1}}}
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", other, steps=1)]
    assert differing(paths) == {
        "module.optimizer.lr": [1e-3, 2e-3],
        "module.optimizer.beta": ["–", 1],
    }
    assert side_by_side([read_row(p) for p in paths]) == {"train/loss": [0.25, 0.5]}


def test_only_what_nobody_misses_is_cleaned_up(tmp_path):
    failed, running = make_run(tmp_path / "failed"), make_run(tmp_path / "running")
    with pytest.raises(ValueError, match="x"), recorded(failed, {}):
        raise ValueError("x")
    with recorded(running, {}):
        (running / "checkpoints" / ".draft-1").mkdir(parents=True)
        assert list(leftovers(read_row(running))) == []
        assert [path for path, _ in leftovers(read_row(failed))] == [failed]
    assert [p.name for p, _ in leftovers(read_row(running))] == [".draft-1"]
