"""The whole line in miniature, by the commands that a person types: pictures, shards, both
stages, samples, and what they leave behind."""

import argparse
import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
TINY = "global_batch=8 log_every=1 checkpoint.every=2 trainer=cpu precision=32-true"
SECOND = "experiment=emoji/diffusion backbone=unet_tiny image_size=32 first_stage=runs/first "
SECOND += "data=shards data.folder=shards evaluation.prompts=4 sampler.steps=2 "
SHORT = "trainer.max_steps=4 evaluation.every=2 module.lr_schedule.warmup=1"


class Done(NamedTuple):
    """What a command left on the terminal."""

    returncode: int
    stdout: str
    stderr: str


def call(file, *arguments, cwd):
    """Run a command as its own process would, but in this one, which has everything imported."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    code = 0
    os.chdir(cwd)
    GlobalHydra.instance().clear()
    try:
        with (
            mock.patch.object(sys, "argv", [str(file), *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # what libraries say of each other is not our test
            runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    finally:
        os.chdir(before)
    return Done(code, out.getvalue(), err.getvalue())


def train(arguments, cwd):
    return call(ROOT / "train.py", *arguments.split(), *TINY.split(), cwd=cwd)


def ldm(*arguments, cwd):
    return call(ROOT / "ldm/commands/__main__.py", *arguments, cwd=cwd)


def refused(done, *words):
    """One line that says what and what to do, and exit code 2."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of pictures with metadata.jsonl, its shards, and both stages trained on them."""
    place = tmp_path_factory.mktemp("line")
    (place / "pictures").mkdir()
    lines = []
    for number in range(24):
        colour = list(COLOURS)[number % 3]
        picture = Image.new("RGB", (80, 72), "white")
        ImageDraw.Draw(picture).ellipse((10, 8 + number % 5, 66, 62), fill=COLOURS[colour])
        picture.save(place / "pictures" / f"{number:02d}.png")
        lines.append(json.dumps({"file_name": f"{number:02d}.png", "text": f"{colour} ball"}))
    (place / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    steps = [
        ldm(
            "shards",
            "make",
            "pictures",
            "shards",
            "--size",
            "32",
            "--hold-out-every",
            "3",
            cwd=place,
        ),
        train(
            "experiment=emoji/autoencoder name=first autoencoder=tiny image_size=32 "
            "data=shards data.folder=shards " + SHORT,
            place,
        ),
        train(SECOND + "name=second " + SHORT, place),
    ]
    for done in steps:
        assert done.returncode == 0, done.stdout + done.stderr
    return place


def tags(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def test_the_first_stage_leaves_a_latent_contract_and_its_pictures(place):
    run = place / "runs" / "first"
    record = json.loads((run / "latents.json").read_text())
    assert len(record["mean"]) == len(record["std"]) > 0
    assert record["count"] == 16
    assert len(record["fingerprint"]) == 64
    events = tags(run)
    scalars = set(events.Tags()["scalars"])
    wanted = {"train/loss", "val/psnr", "val/ssim", "reconstruction/fd_clip"}
    assert wanted <= scalars
    for name in ("reconstructions", "latents"):
        assert [event.step for event in events.Images(name)] == [2, 4]


def test_the_second_stage_leaves_samples_prompts_and_scores(place):
    run = place / "runs" / "second"
    events = tags(run)
    wanted = {"train/loss", "val/loss", "sample/fd_clip", "sample/clip_score"}
    wanted |= {f"train/loss_by_time/{k / 8:.3f}-{(k + 1) / 8:.3f}" for k in range(8)}
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("samples")] == [2, 4]
    text = events.Tensors("samples/prompts/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "firefighter dark skin tone" in text
    assert (run / "samples" / "samples-00000004.png").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} >= {2, 4}


def test_a_sweep_is_measured_drawn_once_and_plotted(place):
    asked = ["evaluate", "runs/second", "--samples", "3", "--per-prompt", "2", "--metrics"]
    asked += ["fd_clip,clip_score,diversity,memorisation", "--sweep", "sampler=ddim,heun"]
    done = ldm(*asked, "steps=1,2", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    out = place / "runs" / "second" / "evaluation"
    rows = json.loads((out / "results.json").read_text())
    assert [(row["sampler"], row["steps"]) for row in rows] == [
        ("ddim", 1), ("heun", 1), ("ddim", 2), ("heun", 2),
    ]  # fmt: skip
    for row in rows:
        assert all(isinstance(value, float) for value in row["values"].values())
        assert row["pictures"] == 6
        assert "against train: 16 pictures" in row["names"]["memorisation"]
    assert (out / "pareto.png").is_file()
    assert (out / "quality.png").is_file()
    drawn = {path: path.stat().st_mtime_ns for path in out.rglob("0*.png")}
    assert len(drawn) == 24
    again = ldm(*asked, "steps=1,2", cwd=place)
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("0*.png")} == drawn


@pytest.mark.slow
def test_two_ranks_draw_and_measure_what_one_does(place):
    """Started by torchrun, as people do; an uneven number of pictures."""
    asked = ["evaluate", "runs/second", "--samples", "5", "--metrics", "fd_clip,clip_score,prdc"]
    asked += [
        "--batch-size",
        "1",
    ]  # batches of other sizes may round a picture's last bit otherwise
    alone = ldm(*asked, "--out", "alone", cwd=place)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "ldm.commands", *asked, "--out", "both"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (json.loads((place / o / "results.json").read_text())[0] for o in ("alone", "both"))
    assert one["values"] == two["values"]
    assert one["pictures"] == two["pictures"] == 5


def test_reconstructions_are_measured_as_in_the_run(place):
    done = ldm("evaluate", "runs/first", "--metrics", "psnr,ssim,fd_clip", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((place / "runs/first/evaluation/results.json").read_text())[0]
    assert row["pictures"] == 8
    lines = (place / "runs/first/metrics.jsonl").read_text().splitlines()
    logged: dict[str, float] = {}
    for line in map(json.loads, lines):
        logged |= line
    assert row["values"]["psnr"] == pytest.approx(logged["val/psnr"], rel=1e-4)
    assert row["values"]["fd_clip"] == pytest.approx(logged["reconstruction/fd_clip"], rel=1e-4)
    missing = ldm("evaluate", "runs/first", "--metrics", "lpips", cwd=place)
    refused(missing, "--metrics lpips", "vgg16-397923af.pth")


def test_what_compares_with_training_pictures_decodes_latents(place):
    """As a codec that encodes and decodes them shows them, but for half precision."""
    from ldm.commands.first_stage import load_codec
    from ldm.commands.metric_choices import References
    from ldm.data import LatentData, ShardData, all_pictures
    from ldm.frozen.features import open_clip_features
    from ldm.metrics import reference_statistics

    encoded = ldm("encode", "runs/first", "latents", cwd=place)  # what it was trained on
    assert encoded.returncode == 0, encoded.stderr
    codec, clip = load_codec(str(place / "runs/first")), open_clip_features("asset:emoji_clip")
    data = LatentData(f"{place}/latents/train-*.tar")
    references = References({"train": lambda: data}, {}, torch.device("cpu"), lambda: codec)
    pictures = all_pictures(ShardData(f"{place}/shards/train-*.tar", 32))
    wanted = reference_statistics(
        clip, (codec.decode(codec.encode(batch["image"])) for batch in pictures)
    )
    made = references.of(clip, "train")
    assert made.count == wanted.count == 16
    torch.testing.assert_close(made.mean, wanted.mean, atol=1e-2, rtol=0)
    assert "train, decoded latents: 16 pictures" in references.told(clip, "train")
    with pytest.raises(ValueError, match="no val data to compare with"):
        references.of(clip, "val")


@pytest.mark.parametrize(
    "way", ["unwatched", "undrawn", pytest.param("failing", marks=pytest.mark.slow)]
)
def test_evaluation_leaves_no_trace_in_the_weights(place, monkeypatch, way):
    """A training without one, and one whose metrics or pictures raise, end in the same bits."""
    from ldm.commands.parts import DiffusionStage
    from ldm.generate import TextToImage
    from ldm.metrics import FrechetDistance

    def raises(*_):
        raise RuntimeError("not today")

    if way == "unwatched":
        monkeypatch.setattr(DiffusionStage, "callbacks", lambda *_: [])
    else:
        broken, method = {
            "failing": (FrechetDistance, "add"),
            "undrawn": (TextToImage, "__call__"),
        }[way]
        monkeypatch.setattr(broken, method, raises)
    done = train(f"{SECOND}name={way} {SHORT}", place)
    assert done.returncode == 0, done.stdout + done.stderr
    watched, other = (newest_state(place / "runs" / name) for name in ("second", way))
    assert watched.keys() == other.keys()
    for name, tensor in watched.items():
        assert torch.equal(tensor, other[name]), name
    lines = (place / "runs" / way / "metrics.jsonl").read_text()
    assert "sample/fd_clip" not in lines
    assert ("sample/clip_score" in lines) == (way == "failing")


def newest_state(run):
    from ldm.runs.checkpoints import checkpoints

    return checkpoints(run / "checkpoints")[-1].load()["state_dict"]


def test_a_run_says_where_it_comes_from(place):
    run = place / "runs" / "second"
    record = json.loads((run / "provenance.jsonl").read_text().splitlines()[0])
    assert "experiment=emoji/diffusion" in record["command"]
    assert (run / "config.yaml").is_file()
    assert (run / "log.txt").read_text()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "last",
        "step-00000002",
        "step-00000004",
    ]


def test_a_prompt_and_a_seed_are_a_picture_in_any_batch(place):
    both = ldm(
        "sample", "runs/second", "red ball", "blue ball", "--seed", "3", "--out", "a", cwd=place
    )
    assert both.returncode == 0, both.stderr
    alone = ldm(
        *("sample", "runs/second", "blue ball", "--seed", "4", "--out", "b"),
        *("--batch-size", "1", "--steps", "2", "--sampler", "dpmpp_2m"),
        cwd=place,
    )
    assert alone.returncode == 0, alone.stderr
    names = sorted(p.name for p in (place / "a").iterdir())
    assert names == ["000000.png", "000001.png", "grid.png"]
    with (
        Image.open(place / "a" / "000001.png") as first,
        Image.open(place / "b" / "000000.png") as second,
    ):
        difference = max(abs(a - b) for a, b in zip(first.tobytes(), second.tobytes(), strict=True))
        assert difference <= 1  # a batch of another size may round the last bit elsewhere
        assert first.text["prompt"] == "blue ball"
        assert first.text["seed"] == "4"
        assert first.text["checkpoint"] == "second/step-00000004"


def test_every_option_of_the_process_is_reached_by_an_override(place):
    """Times, weight, learned variance and uncertainty, noises, grid and guidance in one run; then
    a picture from another, its trajectory, and the forward chain."""
    done = train(
        "experiment=emoji/diffusion name=third backbone=unet_tiny image_size=32 "
        "first_stage=runs/first data=shards data.folder=shards evaluation.prompts=4 "
        "times=mode weight=min_snr diffusion.variance={_target_:ldm.diffusion.LearnedVariance} "
        "module.uncertainty={_target_:ldm.diffusion.LearnedUncertainty} "
        "diffusion.offset_noise=0.1 diffusion.input_perturbation=0.1 sampler=ddpm sampler.steps=2 "
        "grid=shifted guidance=adaptive trainer.max_steps=2 evaluation.every=2 "
        "module.lr_schedule.warmup=1",
        place,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "runs/third/samples/samples-00000002.png").is_file()
    drawn = ldm(
        *("sample", "runs/third", "red ball", "--out", "c", "--init-image", "pictures/00.png"),
        *("--strength", "0.8", "--steps", "4", "--guidance-kind", "rescaled", "--trajectory"),
        *("--guidance", "2", "--thresholding", "3", "--autoguidance", "runs/third", "--eta", "0"),
        cwd=place,
    )
    assert drawn.returncode == 0, drawn.stderr
    names = {path.name for path in (place / "c").iterdir()}
    assert {"000000.png", "000000-trajectory.png", "000000-trajectory.gif"} <= names
    chain = ("explain", "runs/third", "--image", "pictures/00.png", "--out", "c")
    assert ldm(*chain, cwd=place).returncode == 0
    assert {"chain.png", "snr.png"} <= {path.name for path in (place / "c").iterdir()}


def test_the_same_command_again_has_nothing_to_do(place):
    again = train(
        "experiment=emoji/autoencoder name=first autoencoder=tiny image_size=32 "
        "data=shards data.folder=shards " + SHORT,
        place,
    )
    assert again.returncode == 0, again.stderr
    assert "nothing to train" in again.stdout


def test_another_configuration_in_the_same_folder_is_refused(place):
    other = train(
        "experiment=emoji/autoencoder name=first autoencoder=tiny image_size=32 seed=7 "
        "data=shards data.folder=shards " + SHORT,
        place,
    )
    refused(other, "runs/first", "seed: 0 -> 7", "set name=")


def test_a_first_stage_that_is_none_is_refused(place):
    missing = train("experiment=emoji/diffusion name=x first_stage=runs/nothing", place)
    refused(missing, "runs/nothing", "not a run folder")
    wrong = train("experiment=emoji/diffusion name=x first_stage=runs/second", place)
    refused(wrong, "runs/second", "stage")
    assert not (place / "runs" / "x").exists()


def test_a_first_stage_with_other_weights_than_it_measured_is_refused(place):
    record = place / "runs" / "first" / "latents.json"
    honest = record.read_text()
    try:
        record.write_text(json.dumps({**json.loads(honest), "fingerprint": "0" * 64}))
        done = train("experiment=emoji/diffusion name=x first_stage=runs/first", place)
        refused(done, "other weights")
    finally:
        record.write_text(honest)


FIRST = "experiment=emoji/autoencoder autoencoder=tiny image_size=32 data=shards "
FIRST += f"data.folder=shards {SHORT} "
DECODER = "name=decoder module.freeze_encoder=true autoencoder.init=runs/first "


@pytest.fixture(scope="module")
def decoder(place):
    """A first stage with the encoder of `runs/first`, whose decoder saw other pictures."""
    done = train(f"{FIRST}{DECODER}data.train.shards=shards/val-*.tar", place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "runs/decoder"


def test_training_only_the_decoder_leaves_the_contract_to_the_letter(place, decoder):
    contracts = [(run / "latents.json").read_text() for run in (place / "runs/first", decoder)]
    assert contracts[0] == contracts[1]
    before, after = newest_state(place / "runs/first"), newest_state(decoder)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(name.startswith("average.decoder.") for name in moved)
    assert not any(name.startswith("average.encoder.") for name in moved)


def test_a_frozen_encoder_that_is_not_the_measured_one_is_refused(place):
    """Deeper than what it begins from, so that some of its weights are random."""
    done = train(FIRST + DECODER + "name=deeper autoencoder.blocks=2", place)
    refused(done, "autoencoder.init=runs/first", "module.freeze_encoder=true", "another encoder")
    assert not (place / "runs/deeper").exists()


def test_another_decoder_of_the_same_encoder_draws_other_pixels(place, decoder):
    for out, more in (("own", []), ("other", ["--first-stage", "runs/decoder"])):
        done = ldm("sample", "runs/second", "red ball", "--out", out, *more, cwd=place)
        assert done.returncode == 0, done.stderr
    assert (place / "own/000000.png").read_bytes() != (place / "other/000000.png").read_bytes()


def test_a_second_stage_refuses_other_latents_than_it_was_trained_in(place, tmp_path):
    """Of another autoencoder by name, of its own that was trained on since, and of its own measured
    on other pictures; but not what measuring again moves."""
    done = train(FIRST + "name=stranger seed=1", place)
    assert done.returncode == 0, done.stdout + done.stderr
    sample = ("sample", "runs/second", "red ball", "--out", "refused")
    named = ldm(*sample, "--first-stage", "runs/stranger", cwd=place)
    refused(named, "--first-stage runs/stranger", "runs/second", "other weights")
    runs = tmp_path / "runs"
    shutil.copytree(place / "runs", runs, symlinks=True)
    record = json.loads((runs / "first/latents.json").read_text())
    record["mean"][0] += 1e-4 * record["std"][0]
    (runs / "first/latents.json").write_text(json.dumps(record))
    assert ldm(*sample, cwd=tmp_path).returncode == 0
    record["mean"][0] += 0.1 * record["std"][0]
    (runs / "first/latents.json").write_text(json.dumps(record))
    refused(ldm(*sample, cwd=tmp_path), "first_stage=runs/first", "latents.json", "--first-stage")
    shutil.rmtree(runs / "first")
    (runs / "stranger").rename(runs / "first")
    refused(ldm(*sample, cwd=tmp_path), "first_stage=runs/first", "other weights")
    shutil.copytree(place / "shards", tmp_path / "shards")
    before = (runs / "second/state.json").read_text()
    resumed = train(SECOND + "name=second " + SHORT, tmp_path)
    planned = ldm("check", *(SECOND + "name=second").split(), cwd=tmp_path)
    for done in (resumed, planned):
        refused(done, "first_stage=runs/first", "runs/second", "name=ANOTHER")
    assert (runs / "second/state.json").read_text() == before
    state = json.loads(before)
    del state["facts"]["first_stage"]  # a run from before this was remembered
    (runs / "second/state.json").write_text(json.dumps(state))
    assert ldm(*sample, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("experiment=emoji/autoencoder trainer.max_step=3", ["trainer.max_step", "max_steps"]),
        ("experiment=emoji/autoencodr", ["experiment", "'autoencoder'"]),
        ("experiment=emoji/autoencoder data=shards data.folder=nowhere", ["nowhere"]),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, arguments, words):
    done = train(arguments, tmp_path)
    refused(done, *words)
    assert not (tmp_path / "runs").exists()


def test_the_configuration_is_printed_without_heavy_imports(tmp_path):
    """`--cfg job` must answer at once, so nothing heavy may be imported for it."""
    script = (
        "import runpy\n"
        "sys.argv = [sys.argv[1], 'experiment=emoji/diffusion', '--cfg', 'job']\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    watch = "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-c", watch + script, str(ROOT / "train.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stage_name: diffusion" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_quickstart_in_short(tmp_path, monkeypatch):
    """The commands that `ldm quickstart` runs, with a few steps and small networks."""
    from ldm.commands import quickstart
    from ldm.commands.child import Ended

    monkeypatch.chdir(tmp_path)
    ran = []

    def ended(command):
        words = command[1:]
        if words[:2] == ["-m", "ldm.commands"]:
            words = [str(ROOT / "ldm/commands/__main__.py"), *words[2:]]
        done = call(*words, cwd=tmp_path)
        ran.append(words)
        assert done.returncode == 0, done.stdout + done.stderr
        return Ended(done.returncode, asked=False)

    monkeypatch.setattr(quickstart, "ended", ended)
    parser = argparse.ArgumentParser()
    quickstart.add_parser(parser.add_subparsers())
    short = "quickstart --autoencoder-steps 2 --diffusion-steps 2 --prompts 2 image_size=32"
    tiny = "trainer=cpu precision=32-true module.lr_schedule.warmup=1 global_batch=8"
    arguments = parser.parse_args([*short.split(), *tiny.split()])
    assert arguments.func(arguments) == 0
    assert len(ran) == 4
    with Image.open(tmp_path / "runs/quickstart-samples/grid.png") as grid:
        assert grid.size == (2 * 32 + 2, 32)
