"""`ldm stats make` and `ldm evaluate` on folders of pictures, and what a sweep is."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ldm.commands import main
from ldm.commands.evaluate import prompts_of, settings_of, table
from ldm.commands.evaluate_plots import pareto, quality
from ldm.commands.judging import Ranks, draw_missing, open_folder
from ldm.commands.metric_choices import named_references
from ldm.metrics import load_reference


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
    kept = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["values"] for line in kept] == [values]
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


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.txt", b"caf\xe9", r"a\.txt: the caption is not UTF-8 \(byte 3"),
        ("metadata.jsonl", b'{"text": "caf\xe9"}', r"metadata\.jsonl, line 1: unreadable JSON"),
        ("metadata.jsonl", b"\n[1]", r"metadata\.jsonl, line 2: the JSON holds a list"),
    ],
)
def test_captions_that_cannot_be_read_are_named_by_their_file(tmp_path, name, raw, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path)


def test_prompts_that_are_not_utf_8_are_named_by_their_line(tmp_path):
    asked = Namespace(prompts=str(tmp_path / "prompts.txt"), per_prompt=2)
    (tmp_path / "prompts.txt").write_bytes("red apple\n\ncafé \r\n".encode())
    assert prompts_of(asked, list) == ["red apple", "red apple", "café", "café"]
    (tmp_path / "prompts.txt").write_bytes(b"red apple\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"prompts\.txt, line 2: the caption is not UTF-8"):
        prompts_of(asked, list)


def test_a_folder_of_shards_is_told_how_it_is_named(tmp_path):
    (tmp_path / "val-00000.tar").touch()
    with pytest.raises(ValueError, match=r"of shards name the files, such as '.*/val-\*\.tar'"):
        open_folder(tmp_path)


def test_a_sweep_is_every_combination():
    own = {"guidance": None, "steps": 7, "passes": None, "sampler": None}
    cells = settings_of(Namespace(sweep=["guidance=1,2.5", "steps=5,10"], **own))
    assert [(c["guidance"], c["steps"]) for c in cells] == [(1, 5), (1, 10), (2.5, 5), (2.5, 10)]
    assert settings_of(Namespace(sweep=[], **own)) == [own]
    both = settings_of(Namespace(sweep=["sampler=ddim,heun", "steps=5,10"], **own))
    assert [(c["sampler"], c["steps"]) for c in both] == [
        ("ddim", 5), ("heun", 5), ("ddim", 10), ("heun", 10),
    ]  # fmt: skip
    for wrong in ("guidance", "colour=1", "steps=few"):
        with pytest.raises(ValueError, match="--sweep"):
            settings_of(Namespace(sweep=[wrong], **own))


def test_prompts_are_spread_over_the_captions_and_repeated(capsys):
    captions = [str(number) for number in range(10)]
    asked = Namespace(prompts=None, samples=5, per_prompt=2)
    data = Namespace(captions=lambda: captions)
    assert prompts_of(asked, lambda: data) == ["0", "0", "2", "2", "4", "4", "6", "6", "8", "8"]
    assert capsys.readouterr().err == ""
    asked = Namespace(prompts=None, samples=10_000, per_prompt=1)
    assert prompts_of(asked, lambda: data) == captions
    assert "--samples 10000, but data.val has 10 captions" in capsys.readouterr().err


def test_grids_and_trajectories_of_samples_are_no_pictures_of_a_set(tmp_path):
    names = ("000000.png", "000003.png", "grid.png", "grid-000003.png", "000003-trajectory.png")
    for name in (*names, ".000004.png.77"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="PNG")
    assert [path.name for path in open_folder(tmp_path).files] == ["000000.png", "000003.png"]


def row(guidance, distance, score, steps=5, sampler="DDIM"):
    values = {"fd_clip": distance, "clip_score": score}
    names = {"fd_clip": "frechet_distance/x against val: 9", "clip_score": "clip_score/x"}
    shown = {"sampler": sampler, "steps": steps, "guidance": guidance, "pictures": 9}
    return {**shown, "seconds": steps / 100, "values": values, "names": names}


def test_the_table_says_why_a_number_is_missing():
    rows = [row(1.0, 3.25, 20.0), row(2.0, "needs 2 pictures or more, got 1", 21.5)]
    text = table(rows).splitlines()
    assert text[0].split() == [
        "sampler", "steps", "guidance", "pictures", "seconds", "fd_clip", "clip_score",
    ]  # fmt: skip
    assert text[1].split() == ["DDIM", "5", "1", "9", "0.05", "3.25", "20"]
    assert text[2].split()[-2:] == ["-", "21.5"]
    assert text[3] == "fd_clip: needs 2 pictures or more, got 1"


def test_the_plots_of_a_sweep(tmp_path):
    sweep = [
        row(guidance, 3.0 + guidance / steps, 20 + guidance, steps, sampler)
        for guidance in (1.0, 2.0)
        for steps in (5, 10)
        for sampler in ("DDIM", "Heun")
    ]
    assert pareto([*sweep, row(3.0, "failed", 21.0)], tmp_path / "pareto.png")
    assert quality(sweep, tmp_path / "quality.png")
    for name in ("pareto.png", "quality.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 600
    nothing = [row(1.0, "no", "no")]
    assert not pareto(nothing, tmp_path / "none.png")
    assert not quality(nothing, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_references_by_split():
    assert named_references([]) == {}
    assert named_references(["a", "train=b.safetensors"]) == {"val": "a", "train": "b.safetensors"}
    assert named_references(["odd=name"]) == {"val": "odd=name"}
    with pytest.raises(ValueError, match="val has one already"):
        named_references(["a", "val=b"])


def test_statistics_of_other_features_are_refused(folder, tmp_path, monkeypatch, capsys):
    """By the name of the features, which holds network, weights and resize."""
    own = tmp_path / "own.safetensors"
    assert ldm(monkeypatch, "stats", "make", folder, "--size", 64, "--out", own) == 0
    made = load_reference(own)
    other = replace(made, features=made.features.replace("bicubic", "bilinear"))
    other.save(tmp_path / "other.safetensors")
    for split, metric in (("", "fd_clip"), ("train=", "memorisation")):
        asked = ["evaluate", folder, "--metrics", metric, "--out", tmp_path / "out"]
        asked += ["--reference", f"{split}{tmp_path / 'other.safetensors'}"]
        capsys.readouterr()
        assert ldm(monkeypatch, *asked) == 2
        assert "cannot be compared with" in capsys.readouterr().err
    asked[-1] = f"train={own}"
    assert ldm(monkeypatch, *asked) == 0  # each picture is in the reference: all are copies
    values = json.loads((tmp_path / "out" / "results.json").read_text())[0]["values"]
    assert values["memorisation"] == 1.0


def test_a_named_reference_is_found_in_the_cache(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    made = ["stats", "make", folder, "--size", 64, "--name", "mine", "--features"]
    assert ldm(monkeypatch, *made, "clip:asset:emoji_clip") == 0
    asked = ["evaluate", folder, "--metrics", "kid", "--reference", "mine", "--out", tmp_path]
    assert ldm(monkeypatch, *asked) == 0
    names = json.loads((tmp_path / "results.json").read_text())[0]["names"]
    assert "against val: 12 pictures, " in names["kid"]
    capsys.readouterr()
    assert ldm(monkeypatch, *asked[:-4], "--reference", "yours") == 2
    assert "ldm stats make" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("fid", "put pt_inception-2015-12-05-6726825d.pth there"),
        ("sfid", "put pt_inception-2015-12-05-6726825d.pth there"),
        ("fd_dinov2", "no DINOv2 model"),
        ("lpips", "which only an autoencoder makes"),
        ("diversity", ""),
    ],
)
def test_missing_weights_say_which_file_goes_where(
    folder, tmp_path, monkeypatch, capsys, metric, words
):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("HOME", str(tmp_path))
    before = '[{"values": {"kid": 1.0}}]'
    (tmp_path / "results.json").write_text(before)
    code = ldm(monkeypatch, "evaluate", folder, "--metrics", metric, "--out", tmp_path)
    assert (tmp_path / "results.json").read_text() == before
    output = capsys.readouterr()
    if words:
        assert code == 2
        assert words in output.err
    else:  # nothing is measured: each caption has one picture
        assert code == 3
        assert "draw several pictures a prompt" in output.out


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
