"""The whole line in miniature, by the commands that a person types: pictures, shards, both
stages, samples, and what they leave behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
TINY = "global_batch=8 log_every=1 checkpoint.every=2 trainer=cpu precision=32-true"
SHORT = "trainer.max_steps=4 evaluation.every=2 module.lr_schedule.warmup=1"


def call(*command, cwd):
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def train(arguments, cwd):
    return call(str(ROOT / "train.py"), *arguments.split(), *TINY.split(), cwd=cwd)


def ldm(*arguments, cwd):
    return call("-m", "ldm.commands", *arguments, cwd=cwd)


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
        train(
            "experiment=emoji/diffusion name=second backbone=unet_tiny image_size=32 "
            "first_stage=runs/first data=shards data.folder=shards "
            "evaluation.prompts=4 sampler.steps=2 " + SHORT,
            place,
        ),
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
    wanted = {"train/loss", "val/psnr", "val/ssim", "reconstruction/frechet_distance"}
    assert wanted <= scalars
    assert "reconstructions" in events.Tags()["images"]
    assert [event.step for event in events.Images("reconstructions")] == [2, 4]


def test_the_second_stage_leaves_samples_prompts_and_scores(place):
    run = place / "runs" / "second"
    events = tags(run)
    wanted = {"train/loss", "val/loss", "sample/frechet_distance", "sample/clip_score"}
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("samples")] == [2, 4]
    text = events.Tensors("samples/prompts/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "firefighter dark skin tone" in text
    assert (run / "samples" / "samples-00000004.png").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} >= {2, 4}


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
