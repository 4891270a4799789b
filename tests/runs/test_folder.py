"""A run's folder: names stay inside the root, another experiment is refused."""

import json

import pytest

from ldm.runs.folder import differences, open_run, run_folder

CONFIG = {"name": "a", "seed": 0, "module": {"lr": 1e-3}, "log_every": 50}


@pytest.mark.parametrize("name", ["../x", "/abs", "", ".hidden", "a/b", "a b", "x" * 81])
def test_names_that_leave_the_root_or_hide_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="a run's name is"):
        run_folder(str(tmp_path), name)


def test_it_records_where_a_run_comes_from(tmp_path):
    folder = run_folder(str(tmp_path), "a")
    open_run(folder, CONFIG, ["train.py", "seed=0"])
    open_run(folder, CONFIG, ["train.py", "seed=0", "log_every=50"])
    assert folder.config() == CONFIG
    lines = (folder.path / "provenance.jsonl").read_text().splitlines()
    assert [json.loads(line)["command"][-1] for line in lines] == ["seed=0", "log_every=50"]
    assert folder.path.stat().st_mode & 0o077 == 0


def test_another_configuration_is_refused_and_nothing_is_overwritten(tmp_path):
    folder = run_folder(str(tmp_path), "a")
    open_run(folder, CONFIG, [])
    with pytest.raises(ValueError, match=r"module.lr: 0.001 -> 0.1") as refusal:
        open_run(folder, {**CONFIG, "module": {"lr": 0.1}}, [])
    assert "set name=" in str(refusal.value)
    assert folder.config() == CONFIG


def test_what_does_not_change_the_training_may_differ(tmp_path):
    folder = run_folder(str(tmp_path), "a")
    open_run(folder, CONFIG, [])
    open_run(folder, {**CONFIG, "log_every": 10}, [])
    assert folder.config()["log_every"] == 10


def test_how_pictures_are_read_may_change_and_another_order_is_told(tmp_path):
    """Also of a run from before these keys were there."""
    folder = run_folder(str(tmp_path), "a")
    open_run(folder, CONFIG, [])

    def data(salvage, window):
        reading = {"salvage": salvage, "window": window}
        keep = {"min_side": 1 + salvage}
        parts = {"keep": keep, "reading": reading}
        return {**CONFIG, "data": {**parts, "train": parts, "val": parts}}

    assert open_run(folder, data(False, 10), []) == ["data.reading.window: None -> 10"]
    assert open_run(folder, data(True, 10), []) == []
    assert open_run(folder, data(True, 20), []) == ["data.reading.window: 10 -> 20"]


def test_differences_are_by_dotted_key():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == {
        "a.c": (2, 3),
        "d": (None, 4),
    }


def test_secrets_are_not_written(tmp_path):
    folder = run_folder(str(tmp_path), "a")
    open_run(folder, {**CONFIG, "hf_token": "canary-4711"}, [])
    assert not [p for p in folder.path.rglob("*") if b"canary" in p.read_bytes()]


def test_an_unwritable_root_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        open_run(run_folder(str(tmp_path / "file"), "a"), CONFIG, [])
