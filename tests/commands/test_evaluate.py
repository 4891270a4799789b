"""`ldm stats make` and `ldm evaluate` on folders of pictures, and what a sweep is."""

import json
from argparse import Namespace

import pytest
import torch
from PIL import Image

from ldm.commands import main
from ldm.commands.evaluate import by_passes, pareto, prompts_of, settings_of, table
from ldm.commands.judging import Ranks, draw_missing, open_folder


def ldm(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["ldm", *map(str, arguments)])
    return main()


@pytest.fixture
def folder(tmp_path):
    """Twelve smooth pictures with captions in metadata.jsonl."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number in range(12):
        coarse = torch.rand(1, 3, 4, 4, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear")[0]
        levels = (smooth * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(folder / f"{number:03d}.png")
        lines.append(json.dumps({"file_name": f"{number:03d}.png", "text": f"thing {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_a_folder_judged_by_its_own_statistics(folder, tmp_path, monkeypatch, capsys):
    stats = tmp_path / "own.safetensors"
    made = ldm(
        monkeypatch, "stats", "make", folder, "--size", 64, "--out", stats, "--batch-size", 5
    )
    assert made == 0
    assert "12 pictures, 12 kept singly" in capsys.readouterr().out
    metrics = "fd_clip,clip_score,retrieval,prdc"
    out = tmp_path / "out"
    asked = ["evaluate", folder, "--metrics", metrics, "--reference", stats, "--out", out]
    assert ldm(monkeypatch, *asked) == 0
    row = json.loads((out / "results.json").read_text())[0]
    values = row["values"]
    assert row["pictures"] == 12
    assert abs(values["fd_clip"]) < 1e-3
    assert values["precision"] == values["recall"] == values["coverage"] == 1.0
    assert 0 <= values["clip_score"] <= 100
    assert row["names"]["fd_clip"].startswith("frechet_distance/emoji_clip-")


def test_mistakes_are_named_in_one_line(folder, tmp_path, monkeypatch, capsys):
    def refused(*arguments):
        assert ldm(monkeypatch, *arguments) == 2
        return capsys.readouterr().err

    assert "ldm stats make" in refused("evaluate", folder, "--metrics", "fd_clip")
    assert "did you mean 'clip_score'" in refused("evaluate", folder, "--metrics", "clip_scor")
    assert "name a run" in refused("evaluate", folder, "--sweep", "steps=1,2")
    assert "no such folder" in refused("evaluate", tmp_path / "nowhere")
    assert "there are: clip:FOLDER" in refused(
        "stats", "make", folder, "--size", 64, "--features", "vgg", "--name", "x"
    )
    assert "--name or a file" in refused("stats", "make", folder, "--size", 64)
    Image.new("RGB", (32, 64)).save(folder / "odd.png")
    assert "bring all pictures of a set to one size" in refused(
        "evaluate", folder, "--metrics", "clip_score"
    )
    (folder / "metadata.jsonl").unlink()
    (folder / "odd.png").unlink()
    assert "holds no captions" in refused("evaluate", folder, "--metrics", "clip_score")


def test_captions_come_from_where_people_put_them(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("from a text file\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.jpg", "text": "from metadata"}')
    assert open_folder(tmp_path).captions == ["from a text file", "from metadata"]


def test_a_sweep_is_every_combination():
    own = {"guidance": None, "steps": 7, "passes": None, "sampler": None}
    cells = settings_of(Namespace(sweep=["guidance=1,2.5", "steps=5,10"], **own))
    assert [(c["guidance"], c["steps"]) for c in cells] == [(1, 5), (1, 10), (2.5, 5), (2.5, 10)]
    assert settings_of(Namespace(sweep=[], **own)) == [own]
    for wrong in ("guidance", "colour=1", "steps=few"):
        with pytest.raises(ValueError, match="--sweep"):
            settings_of(Namespace(sweep=[wrong], **own))


def test_prompts_are_spread_over_the_captions_and_repeated():
    captions = [str(number) for number in range(10)]
    asked = Namespace(prompts=None, samples=5, per_prompt=2)
    assert prompts_of(asked, captions) == ["0", "0", "2", "2", "4", "4", "6", "6", "8", "8"]


def row(guidance, distance, score):
    values = {"fd_clip": distance, "clip_score": score}
    names = {"fd_clip": "frechet_distance/x", "clip_score": "clip_score/x"}
    return {"steps": 5, "guidance": guidance, "values": values, "names": names}


def test_the_table_says_why_a_number_is_missing(tmp_path):
    rows = [row(1.0, 3.25, 20.0), row(2.0, "needs 2 pictures or more, got 1", 21.5)]
    text = table(rows).splitlines()
    assert text[1].split() == ["5", "1", "3.25", "20"]
    assert text[2].split() == ["5", "2", "-", "21.5"]
    assert text[3] == "fd_clip: needs 2 pictures or more, got 1"
    assert pareto(rows, tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.size[0] > 600
    assert not pareto([row(1.0, "no", "no")], tmp_path / "none.png")


def test_quality_is_drawn_against_passes_where_there_are_several(tmp_path):
    rows = [
        {**row(2.0, 9.0 - passes, 20.0 + passes), "sampler": name, "passes": passes}
        for name in ("ddim", "heun")
        for passes in (1, 4)
    ]
    rows[1]["values"]["fd_clip"] = "needs more pictures"
    assert by_passes(rows, tmp_path / "by-passes.png")
    with Image.open(tmp_path / "by-passes.png") as picture:
        assert picture.size[0] > 1000
    assert not by_passes(rows[::2], tmp_path / "none.png")
    assert not by_passes([row(1.0, 3.0, 2.0), row(2.0, 3.0, 2.0)], tmp_path / "none.png")


class Painter:
    """Draws a flat colour that the seed decides, and counts what it draws."""

    def __init__(self):
        self.drawn = 0

    def __call__(self, prompts, seeds):
        self.drawn += len(prompts)
        return torch.stack([torch.full((3, 8, 8), seed / 10 - 1) for seed in seeds])


def draw(painter, folder, settings, seed=0):
    prompts = [f"p{number}" for number in range(7)]
    draw_missing(painter, prompts, folder, settings, seed=seed, batch_size=3, ranks=Ranks(0, 1))


def test_drawing_goes_on_where_it_was_cut_off(tmp_path):
    painter = Painter()
    draw(painter, tmp_path, {"guidance": 2})
    assert painter.drawn == 7
    whole = {p.name: p.read_bytes() for p in tmp_path.glob("*.png")}
    (tmp_path / "000004.png").unlink()
    draw(painter, tmp_path, {"guidance": 2})
    assert painter.drawn == 8
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.png")} == whole
    assert open_folder(tmp_path).captions[4] == "p4"
    for other in ({"settings": {"guidance": 3}}, {"settings": {"guidance": 2}, "seed": 1}):
        with pytest.raises(ValueError, match="holds pictures of other settings"):
            draw(painter, tmp_path, **other)
