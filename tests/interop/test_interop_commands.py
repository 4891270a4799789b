"""`ldm import` and `ldm export` on whole folders."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, AutoModel, DiffusionPipeline, StableDiffusionPipeline
from omegaconf import OmegaConf
from safetensors.torch import load_file
from small_parts import CLIP, SHAPE, STAGE, parsed, random_parts

from ldm.commands import export, importing
from ldm.commands.first_stage import first_stage_lacks, load_codec
from ldm.commands.trained import load_diffusion
from ldm.commands.weights import backbone_to_train
from ldm.diffusion import DDIM
from ldm.diffusion.guidance import Guided
from ldm.frozen.clip import save_clip
from ldm.interop.compvis import UNET, part
from ldm.interop.compvis_writing import write_compvis
from ldm.interop.first_stage import FirstStage, write_first_stage
from ldm.interop.initialise import initialise
from ldm.interop.reading import ReadAutoencoder, read_network
from ldm.models import KLAutoencoder, UNet
from ldm.runs.checkpoints import STATE, write_checkpoint
from ldm.types import Condition


def test_a_pipeline_comes_in_part_by_part(pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    arguments = parsed(importing, "import", str(pipeline), str(out), "--image-size", "16")
    assert arguments.func(arguments) == 0
    theirs = AutoencoderKL.from_pretrained(pipeline / "vae")
    codec = load_codec(str(out))
    assert first_stage_lacks(str(out)) is None
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(image), theirs.encode(image).latent_dist.mean)
    node = yaml.safe_load((out / "backbone" / "backbone.yaml").read_text())
    assert node.pop("_target_") == "ldm.models.UNet"
    network = UNet(**node)
    account = initialise(network, load_file(out / "backbone" / "model.safetensors"))
    assert (account.resized, account.fresh, account.unused) == ((), (), ())
    wanted = random_parts()[0].state_dict()
    assert all(torch.equal(wanted[n], v) for n, v in network.state_dict().items())
    diffusion = yaml.safe_load((out / "diffusion.yaml").read_text())
    assert diffusion["schedule"] == {
        "_target_": "ldm.diffusion.Betas",
        "first": 0.00085,
        "last": 0.012,
        "power": 2.0,
        "steps": 1000,
    }


def test_a_compvis_checkpoint_comes_in_and_goes_out(tmp_path: Path) -> None:
    network, first, tower = random_parts()
    write_compvis(tmp_path / "sd", network, first=first, text=tower)
    out = tmp_path / "parts"
    source = str(tmp_path / "sd" / "model.safetensors")
    arguments = parsed(importing, "import", source, str(out), "--scale", "1", "--image-size", "16")
    assert arguments.func(arguments) == 0
    back = load_file(out / "backbone" / "model.safetensors")
    assert all(torch.equal(back[n], v) for n, v in network.state_dict().items())
    codec = load_codec(str(out / "first_stage"))
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latent = (first.autoencoder.encode(image).mean - 0.1) / 2
    torch.testing.assert_close(codec.encode(image), latent, atol=1e-5, rtol=1e-5)


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    """A small autoencoder of Flux's kind that says its shift and scale."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    autoencoder.save_pretrained(tmp_path / "flux")
    return tmp_path / "flux"


def test_a_published_name_brings_the_shift_and_scale_of_that_autoencoder(
    flux: Path, tmp_path: Path
) -> None:
    told, named, numbered = tmp_path / "told", tmp_path / "named", tmp_path / "numbered"
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    for out, wish in ((told, []), (named, ["--scale", "flux"]), (numbered, ["--scale", "0.5"])):
        arguments = parsed(importing, "import", str(flux), str(out), *wish)
        assert arguments.func(arguments) == 0
        silent = json.loads((flux / "config.json").read_text())
        silent |= {"scaling_factor": 1.0, "shift_factor": 0.0}
        (flux / "config.json").write_text(json.dumps(silent))
    codec = load_codec(str(told))
    torch.testing.assert_close(load_codec(str(named)).encode(image), codec.encode(image))
    plain = AutoencoderKL.from_pretrained(flux)
    with torch.no_grad():
        mean = plain.encode(image).latent_dist.mean
    torch.testing.assert_close(codec.encode(image), (mean - 0.1159) * 0.3611)
    torch.testing.assert_close(load_codec(str(numbered)).encode(image), mean * 0.5)


@pytest.mark.parametrize(
    ("wish", "said"),
    [("sd", "16 at 1/8"), ("fluxx", "a number above 0, or one of sd, sdxl"), ("0", "above 0")],
)
def test_a_scale_that_cannot_be_meant_is_refused_before_anything_is_written(
    flux: Path, tmp_path: Path, wish: str, said: str
) -> None:
    arguments = parsed(importing, "import", str(flux), str(tmp_path / "out"), "--scale", wish)
    with pytest.raises(ValueError, match=said):
        arguments.func(arguments)
    assert not (tmp_path / "out").exists()


def test_diffusers_reads_our_compvis_checkpoint_as_we_mean_it(
    pipeline: Path, tmp_path: Path
) -> None:
    """Its own converter, on our file, with our U-Net's config: the same tensors as our folder."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    network, first, tower = random_parts()
    write_compvis(tmp_path / "sd", network, first=first, text=tower)
    unet = StableDiffusionPipeline.from_pretrained(pipeline).unet
    theirs = convert_ldm_unet_checkpoint(
        load_file(tmp_path / "sd" / "model.safetensors"), dict(unet.config)
    )
    ours = unet.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[n], v) for n, v in ours.items())


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Folders as trainings leave them."""
    network, first, tower = random_parts()
    importing._write_first_stage(tmp_path, ReadAutoencoder(first.autoencoder, STAGE, 0.1, 2.0), 512)
    save_clip(tmp_path / "clip", tower.model, CLIP)
    config = {
        "name": "trained",
        "stage_name": "diffusion",
        "image_size": 8,
        "global_batch": 2,
        "data": {"train": "shards"},
        "first_stage": str(tmp_path / "first_stage"),
        "backbone": {"_target_": "ldm.models.UNet", **SHAPE},
        "diffusion": {
            "_target_": "ldm.diffusion.Objective",
            "schedule": {"_target_": "ldm.diffusion.Betas"},
            "target": {"_target_": "ldm.diffusion.Noise"},
            "times": {"_target_": "ldm.diffusion.Uniform"},
        },
        "text": {
            "encoder": {
                "_target_": "ldm.frozen.captions.OpenClipCaptions",
                "clip": {
                    "_target_": "ldm.frozen.clip.load_clip",
                    "folder": str(tmp_path / "clip"),
                },
            }
        },
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "metrics.jsonl").write_text('{"step": 7, "val/loss": 0.5}\n')
    state = {f"average.{n}": v for n, v in network.state_dict().items()}
    write_checkpoint(run / "checkpoints", 7, lambda d: torch.save({"state_dict": state}, d / STATE))
    return run


def test_an_exported_run_gives_our_pictures_in_diffusers(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = parsed(export, "export", str(trained), str(out), "--licence", "cc0-1.0")
    assert arguments.func(arguments) == 0
    card = (out / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert "7 optimizer steps" in card
    assert "| val/loss | 0.5 |" in card
    theirs = DiffusionPipeline.from_pretrained(out)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 4, 4)
    prompts = ["red apple", "cat"]
    drawn = theirs(
        prompts, num_inference_steps=4, guidance_scale=2.0, latents=noise, output_type="pt"
    ).images
    ours = load_diffusion(str(trained))
    guided = Guided(ours.denoiser, ours.captions(["", ""]), 2.0)
    with torch.no_grad():
        latent = DDIM(steps=4)(guided, noise, ours.captions(prompts), None)
        pictures = (ours.codec.decode(latent) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(drawn, pictures, atol=1e-4, rtol=0)


def test_compvis_code_knows_groups_of_32_only(tmp_path: Path) -> None:
    _, first, tower = random_parts()
    other = UNet(**(SHAPE | {"groups": 16}))
    with pytest.raises(ValueError, match="32 groups"):
        write_compvis(tmp_path, other, first=first, text=tower)


@pytest.mark.parametrize("heads", [[1, 1], [8, 8], [2, 2]])
def test_a_compvis_checkpoint_is_read_with_the_heads_it_was_written_with(
    tmp_path: Path, heads: list[int]
) -> None:
    """Its tensors do not say: Stable Diffusion 1 has 8, and enters transformers by convolutions."""
    _, first, tower = random_parts()
    network = UNet(**(SHAPE | {"heads": heads})).eval()
    if heads == [2, 2]:
        with pytest.raises(ValueError, match=r"heads=\[2, 2\].*is neither"):
            write_compvis(tmp_path, network, first=first, text=tower)
        return
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    write_compvis(tmp_path, network, first=first, text=tower)
    state = load_file(tmp_path / "model.safetensors")
    entered = state["model.diffusion_model.middle_block.1.proj_in.weight"]
    assert entered.ndim == (4 if heads == [8, 8] else 2)
    back = read_network(tmp_path / "model.safetensors")
    assert back is not None
    x, t = torch.randn(1, 4, 4, 4), torch.rand(1)
    told = Condition(torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool))
    with torch.no_grad():
        assert torch.equal(back.network(x, t, told), network(x, t, told))


@pytest.mark.parametrize("form", ["compvis", "safetensors"])
def test_other_formats_hold_the_averaged_weights(trained: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    arguments = parsed(export, "export", str(trained), str(out), "--to", form)
    assert arguments.func(arguments) == 0
    state = load_file(out / "model.safetensors")
    if form == "compvis":
        assert part(state, UNET)["out.2.bias"].shape == (4,)
    else:
        wanted = random_parts()[0].state_dict()
        assert all(torch.equal(state[n], v) for n, v in wanted.items())


def test_a_folded_autoencoder_goes_out_and_comes_in(tmp_path: Path) -> None:
    """Loaded by diffusers with its class beside it, and read back here with the same latents."""
    torch.manual_seed(0)
    autoencoder = KLAutoencoder(**(STAGE | {"patch": 4})).eval()
    first = FirstStage(autoencoder, (0.1,) * 4, (2.0,) * 4)
    write_first_stage(tmp_path / "vae", first, 32)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    codec = load_codec(str(tmp_path / "vae"))
    with torch.no_grad():
        latent = (autoencoder.encode(image).mean - 0.1) / 2
        torch.testing.assert_close(codec.encode(image), latent, atol=1e-5, rtol=1e-5)
        theirs = AutoModel.from_pretrained(str(tmp_path / "vae"), trust_remote_code=True)
        found = theirs.encode(image).latent_dist.mean
    torch.testing.assert_close(found, latent, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModel.from_pretrained(str(tmp_path / "vae"))


def test_what_exists_is_not_overwritten(trained: Path) -> None:
    arguments = parsed(export, "export", str(trained), str(trained))
    with pytest.raises(ValueError, match="exists already"):
        arguments.func(arguments)


def test_starting_from_weights_that_nearly_fit_accounts_for_each() -> None:
    source, *_ = random_parts()
    wider = UNet(**(SHAPE | {"in_channels": 9, "out_channels": 4, "pooled_width": 3}))
    state = source.state_dict() | {"old.weight": torch.ones(1)}
    account = initialise(wider, state)
    assert account.resized == ("enter.weight [64, 9, 3, 3] of [64, 4, 3, 3]",)
    assert all(name.startswith("pooled.") for name in account.fresh)
    assert account.unused == ("old.weight",)
    assert len(account.kept) == len(source.state_dict()) - 1
    assert torch.equal(wider.enter.weight[:, :4], source.enter.weight)
    assert not wider.enter.weight[:, 4:].any()
    assert "1 resized: enter.weight" in str(account)
    with pytest.raises(ValueError, match="another architecture"):
        initialise(torch.nn.Linear(2, 2), source.state_dict())


def test_a_training_starts_from_any_of_these(
    pipeline: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """backbone.init takes a run, an imported folder, an exported one and another tool's."""
    wanted = random_parts()[0].state_dict()
    for command, source, out, more in (
        (importing, pipeline, tmp_path / "imported", []),
        (export, trained, tmp_path / "exported", ["--to", "safetensors"]),
    ):
        verb = "import" if command is importing else "export"
        arguments = parsed(command, verb, str(source), str(out), *more)
        assert arguments.func(arguments) == 0
    places = (trained, tmp_path / "imported", tmp_path / "exported", pipeline, pipeline / "unet")
    for place in places:
        node = {"_target_": "ldm.models.UNet", **SHAPE, "init": str(place)}
        network = backbone_to_train(OmegaConf.create({"backbone": node}))
        assert all(torch.equal(wanted[n], v) for n, v in network.state_dict().items()), place
    assert f"{len(wanted)} tensors kept\n" in capsys.readouterr().out
    wider = {**node, "pooled_width": 3, "spatial": [1.0, 0.0]}
    backbone_to_train(OmegaConf.create({"backbone": wider}))
    said = capsys.readouterr().out
    assert "1 resized: enter.weight" in said
    assert "4 fresh: pooled.enter.bias, pooled.enter.weight, pooled.leave.bias" in said
    node["init"] = str(tmp_path / "imported" / "first_stage")
    with pytest.raises(ValueError, match=r"backbone\.init=.*'autoencoder' has no backbone"):
        backbone_to_train(OmegaConf.create({"backbone": node}))
    codec = load_codec(str(pipeline / "vae"))
    assert codec.statistics.channels == 4


LORA = {"_target_": "ldm.models.LowRankAdaptation", "rank": 2, "targets": ["*attention.*"]}


def test_low_rank_layers_are_trained_merged_and_exported(trained: Path, tmp_path: Path) -> None:
    """What a training with lora leaves, drawn from by us and by diffusers with the file alone."""
    config = OmegaConf.load(trained / "config.yaml")
    config.backbone.init, config.lora = str(trained), LORA
    network = backbone_to_train(config)
    moved = {n for n, p in network.named_parameters() if p.requires_grad}
    assert moved
    assert all(name.endswith((".up", ".down")) for name in moved)
    for name, parameter in network.named_parameters():
        if name in moved:
            torch.nn.init.normal_(parameter, std=0.2)
    run = tmp_path / "lora-run"
    run.mkdir()
    OmegaConf.save(config, run / "config.yaml")
    state = {f"average.{n}": v for n, v in network.state_dict().items()}
    write_checkpoint(run / "checkpoints", 9, lambda d: torch.save({"state_dict": state}, d / STATE))
    for words in ([str(trained), str(tmp_path / "base")], [str(run), str(tmp_path / "merged")]):
        arguments = parsed(export, "export", *words)
        assert arguments.func(arguments) == 0
    arguments = parsed(export, "export", str(run), str(tmp_path / "file"), "--to", "lora")
    assert arguments.func(arguments) == 0
    base = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    merged = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    x, t, tokens = torch.randn(2, 4, 4, 4), torch.tensor([100, 900]), torch.randn(2, 8, 16)
    with torch.no_grad():
        plain = base.unet(x, t, tokens).sample
        base.load_lora_weights(tmp_path / "file")
        told = base.unet(x, t, tokens).sample
        wanted = merged.unet(x, t, tokens).sample
    torch.testing.assert_close(told, wanted, atol=1e-4, rtol=1e-4)
    assert (told - plain).abs().max() > 1e-2
    arguments = parsed(export, "export", str(trained), str(tmp_path / "none"), "--to", "lora")
    with pytest.raises(ValueError, match="trained with lora=none"):
        arguments.func(arguments)


def test_low_rank_layers_need_weights_to_adapt() -> None:
    config = {"backbone": {"_target_": "ldm.models.UNet", **SHAPE}, "lora": LORA}
    with pytest.raises(ValueError, match=r"set backbone\.init=PATH, or lora=none"):
        backbone_to_train(OmegaConf.create(config))


def test_what_fails_half_way_leaves_nothing(
    pipeline: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "model_card", full)
    monkeypatch.setattr(importing, "_write_diffusion", full)
    for command, verb, source in ((export, "export", trained), (importing, "import", pipeline)):
        arguments = parsed(command, verb, str(source), str(tmp_path / "out"))
        with pytest.raises(OSError, match="No space"):
            arguments.func(arguments)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
