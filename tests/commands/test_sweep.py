"""`ldm sweep`: proposals within their space, a journal that goes on, and what is said to matter.
Training itself is replaced by a function of the settings, except where it is about the command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ldm.commands import main, sweep
from ldm.commands.child import Ended
from ldm.commands.sweep_page import explained
from ldm.commands.sweep_space import space_of

OVER = [
    *("--over", "module.optimizer.lr=1e-5..1e-1:log"),
    *("--over", "critic=none,emoji", "--over", "autoencoder.width=8..64"),
]


class Trainings:
    """Stands for `train.py`: val/loss is (log10 lr + 3)², plus a little for the critic."""

    def __init__(self):
        self.seen, self.ends, self.asked = [], {}, ()

    def ended(self, command):
        settings = dict(word.split("=", 1) for word in command[2:])
        number = len(self.seen)
        self.seen.append(settings)
        end = self.ends.get(number, 0)
        folder = f"{settings['run_root']}/{settings['name']}"
        os.makedirs(folder, exist_ok=True)
        if end == 0:
            lr = float(settings["module.optimizer.lr"])
            loss = (np.log10(lr) + 3) ** 2 + 0.1 * (settings["critic"] == "emoji")
            line = json.dumps({"step": 1, "val/loss": loss})
            with open(f"{folder}/metrics.jsonl", "w") as file:
                file.write(line + "\n")
        return Ended(end, asked=number in self.asked)


@pytest.fixture
def trainings(monkeypatch):
    trainings = Trainings()
    monkeypatch.setattr(sweep, "ended", trainings.ended)
    return trainings


@pytest.fixture
def ldm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["ldm", "sweep", *map(str, words)])
        code = main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def start(ldm, trials, *more):
    words = ("lr", "experiment=emoji/autoencoder", *OVER, "--metric", "val/loss")
    return ldm(*words, "--trials", trials, *more)


def story(tmp_path):
    page = (tmp_path / "runs/lr/sweep.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_a_sweep_finds_what_matters(ldm, trainings, tmp_path):
    code, said, _ = start(ldm, 24)
    assert code == 0
    assert len(trainings.seen) == 24
    assert [s["name"] for s in trainings.seen[:2]] == ["lr-000", "lr-001"]
    for settings in trainings.seen:
        assert 1e-5 <= float(settings["module.optimizer.lr"]) <= 1e-1
        assert settings["critic"] in ("none", "emoji")
        assert 8 <= int(settings["autoencoder.width"]) <= 64
    assert "$ python " in said
    told = story(tmp_path)
    assert next(iter(told["mattered"])) == "module.optimizer.lr"
    assert told["mattered"]["module.optimizer.lr"] > 0.9
    assert told["mattered"]["autoencoder.width"] < 0.5
    assert told["logarithmic"] == ["module.optimizer.lr"]
    assert min(trial["value"] for trial in told["trials"]) < 0.2


def test_a_stopped_sweep_goes_on_where_it_was(ldm, trainings, tmp_path, monkeypatch):
    trainings.ends = {2: 85, 4: 3}
    assert start(ldm, 6)[0] == 85
    assert len(trainings.seen) == 3
    # The process is gone: the next one takes its trial up, with the same settings and folder.
    monkeypatch.setattr("ldm.commands.sweep_space.process_is_there", lambda process: False)
    assert start(ldm, 6)[0] == 0
    assert trainings.seen[3] == trainings.seen[2]
    assert [s["name"][-1] for s in trainings.seen] == list("0122345")
    states = [trial["state"] for trial in story(tmp_path)["trials"]]
    assert states == ["complete"] * 3 + ["fail"] + ["complete"] * 2
    assert "exit code 3" in story(tmp_path)["trials"][3]["why"]
    assert start(ldm, 6)[0] == 0
    assert len(trainings.seen) == 7  # nothing is left to do
    assert len({s["module.optimizer.lr"] for s in trainings.seen}) == 6


def test_a_sweep_that_is_asked_to_stop_as_a_trial_ends_begins_no_other(ldm, trainings, tmp_path):
    trainings.asked = (1,)
    assert start(ldm, 4)[0] == 85
    assert [trial["state"] for trial in story(tmp_path)["trials"]] == ["complete"] * 2
    assert start(ldm, 4)[0] == 0
    assert len(trainings.seen) == 4


@pytest.mark.parametrize("to", ["both, as a terminal does", "this process alone"])
def test_a_child_is_given_the_time_to_save(to, tmp_path):
    """Longer than the quarter of a second that `subprocess.run` gives it after Ctrl-C."""
    child = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.6); pathlib.Path(sys.argv[1]).touch(); sys.exit(85)\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, save)\n"
        "pathlib.Path(sys.argv[1] + '.began').touch(); time.sleep(20)\n"
    )
    parent = (
        "import sys; from ldm.commands.child import ended\n"
        "done = ended([sys.executable, *sys.argv[1:]])\n"
        "sys.exit(done.code + done.asked)\n"
    )
    saved = tmp_path / "saved"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, "-c", child, str(saved)],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    end = time.monotonic() + 20
    while not saved.with_name("saved.began").exists() and time.monotonic() < end:
        time.sleep(0.02)
    if to == "this process alone":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 86
    assert saved.exists()


def test_a_trial_that_lives_is_left_alone(ldm, trainings):
    trainings.ends = {1: 75}
    assert start(ldm, 4)[0] == 75
    assert start(ldm, 4)[0] == 0  # this process began trial 1, and is there
    assert [s["name"][-1] for s in trainings.seen] == list("0123")


@pytest.mark.usefixtures("trainings")
def test_another_search_under_the_same_name_is_refused(ldm):
    assert start(ldm, 1)[0] == 0
    code, _, error = start(ldm, 2, "--over", "seed=1,2")
    assert code == 2
    assert "is a sweep with over" in error
    assert "--trials 0" in start(ldm, 0)[2]


def test_a_metric_that_nobody_records_is_told(ldm, trainings):
    words = ("lr", "experiment=emoji/autoencoder", *OVER, "--metric", "val/los", "--trials", 1)
    code, said, _ = ldm(*words)
    assert code == 0
    assert "no val/los was recorded; there are val/loss" in said


def test_spaces():
    assert space_of(["a=1,2.5,x"])["a"] == CategoricalDistribution([1, 2.5, "x"])
    assert space_of(["a=2..8"])["a"] == IntDistribution(2, 8)
    assert space_of(["a=2.0..8"])["a"] == FloatDistribution(2, 8)
    assert space_of(["a=1e-4..1e-2:log"])["a"] == FloatDistribution(1e-4, 1e-2, log=True)
    for wrong in (["a"], ["a="], ["=1,2"], ["a=3"], ["a=2..1"], ["a=0..1:log"], ["a=1,2", "a=3,4"]):
        with pytest.raises(ValueError, match="--over"):
            space_of(wrong)


def test_the_explained_share_is_the_adjusted_r_squared_of_a_known_mixture():
    generator = np.random.default_rng(0)
    x, rest = generator.standard_normal((2, 4000))
    value = 3 * x + 4 * rest  # 9 of 25
    assert explained(np.column_stack([x, x**2]), value) == pytest.approx(9 / 25, abs=0.03)
    assert explained(x[:, None], 2 * x + 1) == pytest.approx(1)
    assert explained(generator.standard_normal((4000, 2)), value) < 0.01
    assert explained(x[:5, None], np.ones(5)) == 0.0


def test_the_command_of_a_trial_composes():
    """What is run is what `ldm check` accepts."""
    from ldm.commands.check import checked
    from ldm.commands.composing import composed

    asked = Namespace(name="lr", run_root="runs", override=["experiment=emoji/autoencoder"])
    command = sweep.command_of(asked, 7, {"module.optimizer.lr": 1.5e-05, "critic": "emoji"})
    config = composed(command[2:])
    checked(config)
    assert (config.name, config.module.optimizer.lr) == ("lr-007", 1.5e-5)
