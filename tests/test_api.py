"""The ways in from Python against what the commands leave and say."""

import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "commands"))
from miniature import SIZE, first_stage, second_stage
from tiny import make_shards

from ldm import api
from ldm.commands import main
from ldm.commands.building import target_of
from ldm.data import normalise, training_batches
from ldm.frozen.captions import OpenClipCaptions
from ldm.frozen.clip import load_clip
from ldm.generate import to_picture
from ldm.metrics import CLIPScore
from ldm.models import KLAutoencoder
from ldm.runs.checkpoints import checkpoints
from ldm.runs.signals import ASKING
from ldm.training.ema import follow, gradual_decay, twin
from ldm.types import Draws


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    first_stage(root)
    second_stage(root)
    return root


def test_pictures_are_those_that_the_command_draws(models, tmp_path, monkeypatch):
    words = ["ldm", "sample", str(models / "second"), "red apple", "a cat", "--seed", "7"]
    monkeypatch.setattr("sys.argv", [*words, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert main() == 0
    generate = api.load_text_to_image(models / "second", device="cpu")
    made = generate(["red apple", "a cat"], seeds=[7, 8])
    for number, image in enumerate(made):
        with Image.open(tmp_path / "out" / f"{number:06d}.png") as drawn:
            assert np.array_equal(np.array(drawn), np.array(to_picture(image)))
    other = replace(generate, guidance=generate.guidance + 4)(["red apple"], seeds=[7])
    assert not torch.equal(other, made[:1])


def test_another_place_of_the_first_stage_is_taken_and_none_is_told(models, tmp_path):
    moved = shutil.copytree(models / "first", tmp_path / "moved")
    run = shutil.copytree(models / "second", tmp_path / "second")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(models / "first"), str(tmp_path / "gone")))
    with pytest.raises(FileNotFoundError, match="gone"):
        api.load_text_to_image(run)
    found = api.load_text_to_image(run, first_stage=moved, device="cpu").codec
    assert found.statistics == api.load_codec(models / "first", device="cpu").statistics


def test_a_picture_is_read_from_a_path_or_a_name(tmp_path):
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "red.png")
    for path in (tmp_path / "red.png", str(tmp_path / "red.png")):
        picture = api.read_picture(path, SIZE)
        assert picture.shape == (1, 3, SIZE, SIZE)
        assert picture.mean(dim=(0, 2, 3)).tolist() == [1.0, -1.0, -1.0]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.max_step=3", "did you mean 'trainer.max_steps'"),
        ("backbone=unet_emojy", "did you mean 'unet_emoji'"),
        ("seed", "KEY=VALUE"),
    ],
)
def test_what_cannot_be_composed_is_refused_in_one_line(override, told):
    with pytest.raises(ValueError, match=told) as refused:
        api.compose("experiment=emoji/diffusion", override)
    assert "\n" not in str(refused.value)


def test_a_check_refuses_by_key_and_leaves_the_configuration_alone():
    config = api.compose("experiment=emoji/autoencoder")
    before = config.copy()
    assert ("stage", "autoencoder") in api.check(config)
    assert config == before
    with pytest.raises(ValueError, match="name: not set"):
        api.check(api.compose())
    config.global_batch = -1
    with pytest.raises(ValueError, match="global_batch"):
        api.check(config)


@pytest.mark.parametrize("code", [0, 3, 85])
def test_a_training_gives_its_folder_or_ends_with_the_code_of_train(code, tmp_path, monkeypatch):
    """The training itself is run by test_docs_executed; here what is around it."""
    seen = []

    def training(config, settings):
        for number in ASKING:
            signal.signal(number, signal.SIG_IGN)
        config.precision = "32-true"  # as trainings fill in what was left to them
        seen.append(settings)
        return code

    monkeypatch.setattr("ldm.api._train", training)
    config = OmegaConf.create({"run_root": str(tmp_path), "name": "one", "precision": "auto"})
    before = [signal.getsignal(number) for number in ASKING]
    if code:
        with pytest.raises(SystemExit) as end:
            api.train(config)
        assert end.value.code == code
    else:
        assert api.train(config) == tmp_path / "one"
    assert [signal.getsignal(number) for number in ASKING] == before
    assert signal.SIG_IGN not in before
    assert config.precision == "auto"
    assert seen == [["(ldm.api.train)"]]


def test_a_package_of_ones_own_is_called_when_the_environment_names_it(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text("import os\n\n\nclass Part:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"backbone\._target_=own_parts\.Part.*LDM_TRUST"):
        api.build({"_target_": "own_parts.Part"}, "backbone")
    monkeypatch.setenv("LDM_TRUST", "others, own_parts")
    assert type(api.build({"_target_": "own_parts.Part"}, "backbone")).__name__ == "Part"
    for path in ("own_parts_too.Part", "own_parts.os.getcwd", "json.loads"):
        with pytest.raises(ValueError, match="LDM_TRUST"):
            api.build({"_target_": path}, "backbone")


@pytest.mark.parametrize(
    "path",
    [
        "ldm.commands.errors.Path",
        "ldm.runs.folder.subprocess.run",
        "torch.nn.modules.module.torch.load",
    ],
)
def test_what_a_module_has_merely_imported_is_not_called(path):
    with pytest.raises(ValueError, match=r"part\._target_="):
        target_of(path, "part")


@pytest.mark.parametrize(
    ("path", "thing"),
    [
        ("ldm.metrics.CLIPScore", CLIPScore),
        ("ldm.models.KLAutoencoder", KLAutoencoder),
        ("torch.optim.AdamW", torch.optim.AdamW),
        ("torch.nn.functional.relu", torch.nn.functional.relu),
    ],
)
def test_what_a_package_defines_is(path, thing):
    assert target_of(path, "part") is thing


def test_any_verb_is_a_command_whose_refusals_are_raised(capsys):
    api.command("config", "list", "sampler")
    assert "dpmpp_2m" in capsys.readouterr().out
    with pytest.raises(ValueError, match="samplers"):
        api.command("config", "list", "samplers")
    with pytest.raises(SystemExit):
        api.command("evalute")
    assert "evaluate" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Lightning's remarks
def test_a_loop_of_ones_own_trains_what_the_command_trains(models, tmp_path):
    """The loop of docs/python.md, with the settings of a run: averages equal, bit for bit. Twenty
    seconds of processor."""
    make_shards(tmp_path / "shards")
    settings = f"""experiment=emoji/diffusion backbone=unet_tiny image_size={SIZE} seed=5
        data=shards data.folder={tmp_path}/shards first_stage={models}/first global_batch=4
        run_root={tmp_path} name=trained trainer=cpu trainer.max_steps=3 precision=32-true
        trainer.gradient_clip_val=0.5 module.ema_decay=0.9 module.lr_schedule.warmup=2
        evaluation.prompts=2 evaluation.metrics=[] sampler.steps=1"""
    config = api.compose(*settings.split())
    last = checkpoints(api.train(config) / "checkpoints")[-1].load()["state_dict"]

    lightning.seed_everything(5, verbose=False)  # the first weights, in the order of the command
    codec = api.load_codec(models / "first", device="cpu")
    captions = OpenClipCaptions(load_clip("asset:emoji_clip"))
    config.latent = {"channels": codec.statistics.channels, "size": SIZE // 8}
    config.text.width, config.text.pooled_width = captions.width, captions.pooled_width
    network = api.build(config.backbone, "backbone")
    average = twin(network)
    objective = api.build(config.diffusion, "diffusion")
    optimizer = api.build(config.module.optimizer, "optimizer")(list(network.parameters()))
    schedule = api.build(config.module.lr_schedule, "lr_schedule")(optimizer)
    data = api.build(config.data.train, "data.train")
    batches = training_batches(data, global_batch=4, seed=5)
    for step, batch in zip(range(3), batches, strict=False):
        draws = Draws(5, step, range(4), total=4, device=torch.device("cpu"))
        latent = codec.encode(normalise(batch["image"]), draws)
        keep = draws.uniform((), "condition dropout") >= config.module.condition_dropout
        condition = captions(batch["caption"]).where(keep, captions([""] * 4))
        objective(network, latent, condition, draws).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        follow(average, network, gradual_decay(0.9, step))
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, last[f"average.{name}"]), name
