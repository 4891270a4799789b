"""The page about runs is one file that asks nothing of the network, and holds what the runs do."""

import argparse
import json
import re
from html.parser import HTMLParser

import pytest
import scipy.stats
from PIL import Image

from ldm.commands import config, report, runs
from ldm.commands.report_parts import student, wilson


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses, self.data, self._inside = [], "", False

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[k] for k in ("src", "href", "action") if k in values]
        self._inside = values.get("id") == "data"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.data += data


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "first"
    (run / "samples").mkdir(parents=True)
    prompt = "an </script> & <b>apple</b>"
    settings = {
        "stage_name": "diffusion",
        "name": "first",
        "evaluation": {"grid_prompts": [prompt]},
    }
    (run / "config.yaml").write_text(json.dumps(settings))
    lines = [
        {"step": s, "train/loss": 1 / s, "sample/clip_score": float(s)} for s in range(1, 2001)
    ]
    lines.append({"step": 2001, "train/loss": "nan"})
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for step in (1, 2):
        Image.new("RGB", (4, 4), "red").save(run / "samples" / f"samples-{step:08d}.png")
    return run


def page_of(*paths, out):
    report.run(argparse.Namespace(runs=[str(p) for p in paths], out=str(out)))
    page = Page()
    page.feed(out.read_text())
    return page


def test_the_page_is_self_contained_and_holds_the_run(run, tmp_path):
    page = page_of(run, out=tmp_path / "page.html")
    assert all(address.startswith("data:") for address in page.addresses)
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    (story,) = json.loads(page.data)["runs"]
    assert story["prompts"] == ["an </script> & <b>apple</b>"]
    assert [sample["step"] for sample in story["samples"]] == [1, 2]
    steps, values = story["history"]["train/loss"]
    assert (steps[0], values[0], steps[-1]) == (1, 1.0, 2000)
    assert len(steps) <= report.POINTS
    assert story["headline"] == {"sample/clip_score": 2000.0}


def test_a_curve_is_shown_once_and_the_speed_is_the_typical_one(run, tmp_path):
    rates = [90.0, 100.0, 10.0]
    lines = [
        {"step": s, "train/loss": 1 / s, "train/loss_max": 1 / s, "train/loss_other": 2 / s}
        for s in range(1, 9)
    ]
    lines += [{"step": 9 + i, "time/images_per_second": rate} for i, rate in enumerate(rates)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (story,) = json.loads(page_of(run, out=tmp_path / "page.html").data)["runs"]
    assert set(story["history"]) == {"train/loss", "train/loss_other", "time/images_per_second"}
    assert story["headline"] == {"time/images_per_second": 90.0}


def test_several_runs_share_a_page(run, tmp_path):
    page = page_of(run, run, out=tmp_path / "page.html")
    told = json.loads(page.data)
    assert len(told["runs"]) == 2
    assert told["differing"] == {}


def test_the_page_tells_what_was_measured_and_how_surely(run, tmp_path):
    values = {"recall@5": 0.9, "fd_clip": 3.25, "clip_score": "no prompt"}
    (run / "evaluation").mkdir()
    row = {"sampler": "Heun", "steps": 20, "pictures": 100, "values": values}
    (run / "evaluation" / "results.json").write_text(json.dumps([row]))
    config = json.loads((run / "config.yaml").read_text())
    emoji = {"_target_": "ldm.data.ShardData", "shards": "asset:emoji/val-*.tar", "size": 64}
    gone = {**emoji, "shards": "nowhere/train-*.tar"}
    config |= {"data": {"folder": "x", "train": gone, "val": emoji}, "global_batch": 8}
    (run / "config.yaml").write_text(json.dumps(config))
    (story,) = json.loads(page_of(run, out=tmp_path / "page.html").data)["runs"]
    (shown,) = story["evaluated"]
    assert (shown["fd_clip"], shown["clip_score"]) == ("3.25", "–")
    assert shown["recall@5"] == "0.9 (0.826 to 0.945)"
    train, val = story["data"]
    assert "nowhere" in train["missing"]
    assert val["count"] > 100
    assert val["sheet"].startswith("data:image/png;base64,")
    assert story["throughput"]["trained"] == "2,000 steps, 16,000 pictures"
    loss = next(line for line in story["settled"] if line["name"] == "train/loss")
    assert loss["how"] == "mean of the last 200 records"
    low, high = map(float, loss["interval"].split(" to "))
    assert low < float(loss["value"]) < high


def test_students_quantile_is_scipys():
    for freedom in (5, 9, 30, 1000):
        assert student(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=0.01)


def test_wilsons_interval_is_scipys():
    for hits, count in ((0, 10), (7, 10), (96, 100), (64, 64)):
        theirs = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson(hits / count, count) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        page_of(tmp_path, out=tmp_path / "page.html")


def test_compare_prints_exactly_the_differences(run, capsys):
    other = run.with_name("second")
    other.mkdir()
    settings = {"stage_name": "diffusion", "name": "second", "evaluation": {"grid_prompts": ["x"]}}
    (other / "config.yaml").write_text(json.dumps(settings))
    runs.compare_runs(argparse.Namespace(runs=[str(run), str(other)], plot=None))
    said = capsys.readouterr().out
    assert "evaluation.grid_prompts" in said
    assert "stage_name" not in said


def test_a_key_is_explained_by_its_constructor(capsys):
    arguments = {"key": "backbone.heads", "override": []}
    config.explain_key(argparse.Namespace(**arguments))
    said = capsys.readouterr().out
    assert "a list of a whole number" in said
    assert "ldm.models.UNet" in said
    assert "attention heads of each level" in said


def test_a_key_is_explained_by_its_comment_and_its_setters(capsys):
    config.explain_key(argparse.Namespace(key="global_batch", override=[]))
    said = capsys.readouterr().out
    assert "pictures an optimizer step" in said
    assert "experiment=folder/autoencoder: 32" in said


def test_an_unknown_key_has_a_neighbour():
    with pytest.raises(ValueError, match="did you mean 'global_batch'"):
        config.explain_key(argparse.Namespace(key="globl_batch", override=[]))


def test_every_choice_is_listed(capsys):
    config.list_choices(argparse.Namespace(group="sampler"))
    assert "heun             Two passes a step." in capsys.readouterr().out


def test_an_experiment_does_not_differ_from_itself(capsys):
    config.diff(argparse.Namespace(first="emoji/clip", second="emoji/clip"))
    assert capsys.readouterr().out == "no difference\n"
