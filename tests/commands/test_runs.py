"""`ldm runs` as it is typed: every verb, on run folders as trainings leave them."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny import make_shards

from ldm.commands import main, runs
from ldm.commands.curves import shown

ROOT = Path(__file__).parents[2]
TINY = "debug=[fast,deterministic] autoencoder=tiny image_size=32 trainer=cpu name=first"
TINY += " data=shards data.folder=shards global_batch=4 loss=l1 evaluation.metrics=[]"


@pytest.fixture
def ldm(tmp_path, monkeypatch, capsys):
    """`ldm WORDS` in a folder of its own: exit code, what it printed, its error."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["ldm", *map(str, words)])
        code = main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def make_run(folder, lr, losses, **state):
    folder.mkdir(parents=True)
    config = {"name": folder.name, "stage_name": "clip", "module": {"optimizer": {"lr": lr}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [json.dumps({"step": s, "train/loss": loss}) for s, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    record = {"state": "finished", "pid": 1, "host": "h", "began": 0.0, "facts": {}, **state}
    (folder / "state.json").write_text(json.dumps(record))


@pytest.fixture
def three(tmp_path):
    root = tmp_path / "runs"
    make_run(root / "low", 1e-4, [3.0, 2.0])
    make_run(root / "high", 1e-2, [3.0, 1.0])
    make_run(root / "broken", 1.0, [9.0], state="failed", error="ValueError: loss is nan")
    return root


def names(text):
    first = [line.split()[0] for line in text.splitlines() if line.strip()]
    return [name for name in first if name in KNOWN]


KNOWN = ("low", "high", "broken")


@pytest.mark.usefixtures("three")
def test_the_table_is_filtered_and_sorted(ldm):
    assert names(ldm("runs", "--sort", "name")[1]) == ["broken", "high", "low"]
    assert names(ldm("runs", "--sort", "train/loss")[1]) == ["high", "low", "broken"]
    assert names(ldm("runs", "--state", "finished", "--sort", "name")[1]) == ["high", "low"]
    assert names(ldm("runs", "list", "runs", "--match", "l*")[1]) == ["low"]
    assert names(ldm("runs", "--state", "finished", "--sort", "name", "list", "runs")[1]) == [
        "high",
        "low",
    ]
    code, said, _ = ldm("runs", "--state", "failed")
    assert code == 0
    assert "ValueError: loss is nan" in said
    for words, word in (
        (("--sort", "train/los"), "did you mean 'train/loss'"),
        (("--state", "done"), "name running"),
    ):
        code, _, error = ldm("runs", *words)
        assert code == 2
        assert word in error


@pytest.mark.usefixtures("three")
def test_watching_ends_with_the_keyboard(ldm, monkeypatch):
    looks = []

    def pause(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.time, "sleep", pause)
    code, said, _ = ldm("runs", "--watch")
    assert code == 0
    assert looks == [runs.PAUSE] * 3
    assert "broken" in said


@pytest.mark.usefixtures("three")
def test_comparing_prints_exactly_what_differs_and_draws_the_curves(ldm, tmp_path):
    code, said, _ = ldm("runs", "compare", "runs/low", "runs/high", "--plot", "both.png")
    assert code == 0
    rows = [line.split() for line in said.splitlines() if line.strip()]
    assert rows == [
        ["setting", "low", "high"],
        ["module.optimizer.lr", "0.0001", "0.01"],
        ["metric", "low", "high"],
        ["train/loss", "2", "1"],
        ["plot", "both.png"],
    ]
    with Image.open(tmp_path / "both.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


@pytest.mark.usefixtures("three")
def test_only_what_was_listed_is_deleted(ldm, three):
    code, said, _ = ldm("runs", "clean")
    assert code == 0
    assert "failed before its first checkpoint" in said
    assert (three / "broken").is_dir()
    assert ldm("runs", "clean", "--yes")[0] == 0
    assert sorted(path.name for path in three.iterdir()) == ["high", "low"]
    assert "nothing to clean up" in ldm("runs", "clean")[1]


@pytest.mark.usefixtures("three")
def test_a_start_that_never_trained_is_listed_and_what_others_wrote_is_not(ldm, three):
    for name in ("refused", "starting", "exported"):
        (three / name).mkdir()
        (three / name / "config.yaml").write_text("stage_name: clip\n")
    for name in ("refused", "starting"):
        (three / name / "provenance.jsonl").write_text("{}\n")
    (three / "starting" / "lock").write_text("{}")
    said = ldm("runs", "clean")[1]
    listed = [line.split()[0] for line in said.splitlines() if line.startswith("runs/")]
    assert sorted(listed) == ["runs/broken", "runs/refused"]
    then = time.time() - 3600
    os.utime(three / "starting" / "lock", (then, then))
    assert "runs/starting  (a start that ended" in ldm("runs", "clean")[1]


@pytest.mark.filterwarnings("default")  # Lightning's remarks, which train.py keeps from users
def test_a_run_is_repeated_bit_for_bit_and_shown(ldm, monkeypatch):
    from ldm.commands.composing import composed
    from ldm.commands.train import train

    clean = subprocess.run(["git", "-C", str(ROOT), "rev-parse"], capture_output=True, check=False)
    anyway = ["--anyway"] if clean.returncode else []  # without git nobody can tell
    make_shards(Path("shards"))
    monkeypatch.setattr("sys.argv", ["train.py", *TINY.split()])
    assert train(composed(["experiment=emoji/autoencoder", *TINY.split()])) == 0
    code, said, _ = ldm("runs", "show", "runs/first")
    assert code == 0
    for words in ("finished", "4 of 4", f"train.py {TINY}", "2, 4", "val/psnr"):
        assert words in said
    code, said, error = ldm("runs", "rerun", "runs/first", *anyway)
    assert code == 0, said + error
    assert "tensors at step 4, bit for bit" in said
    assert "(the settings are equal)" in ldm("runs", "compare", "runs/first", "runs/first-rerun")[1]
    # Another seed is another run: what is compared can differ.
    other = TINY.replace("name=first", "name=other seed=1")
    assert train(composed(["experiment=emoji/autoencoder", *other.split()])) == 0
    os.rename("runs/other", "runs/first-again")
    config = yaml.safe_load(Path("runs/first/config.yaml").read_text())
    Path("runs/first-again/config.yaml").write_text(
        yaml.safe_dump({**config, "name": "first-again"})
    )
    code, said, error = ldm("runs", "rerun", "runs/first", "--name", "first-again", *anyway)
    assert code == 1, said + error
    assert "different: " in said


def test_repeating_is_refused_with_other_code_or_data(ldm, tmp_path):
    make_run(tmp_path / "runs" / "old", 1e-3, [1.0])
    assert "no commit is recorded" in ldm("runs", "rerun", "runs/old")[2]
    start = {"command": [], "commit": "0" * 40}
    (tmp_path / "runs" / "old" / "provenance.jsonl").write_text(json.dumps(start) + "\n{half")
    code, _, error = ldm("runs", "rerun", "runs/old")
    assert code == 2
    assert "git checkout 0000" in error


def test_a_page_of_plots_shows_what_runs_are_judged_by():
    """Not what comes first in the alphabet: val/loss would be cut off."""
    curve = ([1, 2], [0.5, 0.25])
    names = [*(f"gradient/{n}" for n in range(20)), "sample/fid", "val/loss", "train/loss"]
    one = dict.fromkeys(names, curve) | {"val/once": ([1], [1.0])}
    found = shown([one, one])
    assert found[:3] == ["sample/fid", "val/loss", "train/loss"]
    assert len(found) == 12
    assert shown([one, {"val/loss": curve, "val/once": curve}]) == ["val/loss"]
