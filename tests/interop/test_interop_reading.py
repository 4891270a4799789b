"""Parts of other projects' files: checkpoints of DiT and SiT, text encoders, first stages."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small_parts import classes, randomise
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ldm.commands.building import build
from ldm.commands.first_stage import load_codec, record_of
from ldm.commands.weights import weights_at
from ldm.frozen.captions import OpenClipCaptions
from ldm.frozen.clip import new_clip
from ldm.interop.files import read_weights
from ldm.interop.first_stage import FirstStage, write_first_stage
from ldm.interop.original_dit import original_dit_table
from ldm.interop.reading import read_autoencoder, read_network
from ldm.interop.text_reading import text_node
from ldm.interop.unet_configs import unet_arguments
from ldm.models import DiT, KLAutoencoder


def tiny(**changes) -> DiT:
    network = DiT(4, **({"width": 64, "depth": 2, "heads": 1, "classes": 5} | changes))
    randomise(network)
    return network


def test_a_dit_checkpoint_tells_its_own_shape(tmp_path: Path) -> None:
    """As DiT's training writes it: averages, weights and options in one pickle of plain values."""
    network = tiny(out_channels=8, time_offset=-1.0)
    state = original_dit_table(network, 8, towards_data=False).give(network.state_dict())
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"model": other, "ema": state, "args": Namespace(lr=1e-4)}, tmp_path / "dit.pt")
    found = read_network(tmp_path / "dit.pt")
    assert found is not None
    x, t = torch.randn(2, 4, 8, 8), torch.rand(2)
    with torch.no_grad():
        assert torch.equal(found.network(x, t, classes(0, 1)), network(x, t, classes(0, 1)))
    assert found.node["heads"] == 1
    assert weights_at(tmp_path / "dit.pt", "backbone").keys() == network.state_dict().keys()


def test_a_sit_checkpoint_points_the_other_way_and_has_an_idle_half(tmp_path: Path) -> None:
    """Its network makes twice the channels, drops the second half, and is told 1 - t; its velocity
    runs from noise to data."""
    wide = tiny(out_channels=8, time_scale=-1.0, time_offset=1.0)
    state = original_dit_table(wide, 8, towards_data=False).give(wide.state_dict())
    save_file(state, tmp_path / "sit.safetensors")
    found = read_network(tmp_path / "sit.safetensors", "sit")
    assert found is not None
    assert found.node["out_channels"] == 4
    x, t = torch.randn(2, 4, 8, 8), torch.rand(2)
    with torch.no_grad():
        theirs = wide(x, t, classes(0, 1))[:, :4]
        torch.testing.assert_close(found.network(x, t, classes(0, 1)), -theirs)


def test_a_gated_feed_forward_is_lightningdit(tmp_path: Path) -> None:
    changes = {"rms_norm": True, "swiglu": True, "rope": True, "hidden": 48, "patch": 1}
    network = tiny(**changes, time_scale=-1.0, time_offset=1.0)
    state = original_dit_table(network, 8, towards_data=True).give(network.state_dict())
    torch.save({"ema": {f"module.{n}": v for n, v in state.items()}}, tmp_path / "lightning.pt")
    found = read_network(tmp_path / "lightning.pt")
    assert found is not None
    for name, value in network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value), name


def test_a_damaged_checkpoint_is_described_whole(tmp_path: Path) -> None:
    network = tiny()
    state = original_dit_table(network, 8, towards_data=False).give(network.state_dict())
    del state["t_embedder.mlp.0.bias"]
    state["extra"] = torch.ones(1)
    save_file(state, tmp_path / "dit.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: t_embedder\.mlp\.0\.bias; 1 unknown: extra"):
        read_network(tmp_path / "dit.safetensors")


def test_an_inpainting_unet_is_told_of_a_mask_and_a_picture() -> None:
    config = {"block_out_channels": [8], "down_block_types": ["CrossAttnDownBlock2D"]}
    found = unet_arguments(config | {"up_block_types": ["CrossAttnUpBlock2D"], "in_channels": 9})
    assert found["in_channels"] == 4
    assert found["spatial"] == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("form", ["diffusers", "compvis"])
def test_a_first_stage_of_another_tool_is_used_where_it_lies(tmp_path: Path, form: str) -> None:
    network = KLAutoencoder(latent_channels=4, width=32, multipliers=[1, 2], blocks=1).eval()
    randomise(network)
    if form == "diffusers":
        write_first_stage(tmp_path / "vae", FirstStage(network, (0.0,) * 4, (1.0,) * 4), 16)
        place, scale = tmp_path / "vae", 1.0
    else:
        from ldm.interop.autoencoder import compvis_autoencoder_table

        state = compvis_autoencoder_table(network).give(network.state_dict())
        place, scale = tmp_path / "vae.safetensors", 0.18215
        save_file({f"first_stage_model.{n}": v for n, v in state.items()}, place)
    codec = load_codec(str(place))
    assert record_of(str(place)) == codec.statistics
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        wanted = network.encode(image).mean * scale
    torch.testing.assert_close(codec.encode(image), wanted, atol=1e-5, rtol=1e-4)
    assert weights_at(place, "autoencoder").keys() == network.state_dict().keys()


def tower(width: int = 64):
    vision = {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": width, "layers": 3}
    text["heads"] = width // 64
    torch.manual_seed(0)
    made = new_clip(12, vision, text)
    return made._replace(model=made.model.eval())


def test_the_text_encoder_of_stable_diffusion_2_comes_in(tmp_path: Path) -> None:
    clip = tower()
    state = {n: v for n, v in clip.model.state_dict().items() if not n.startswith("visual.")}
    file = tmp_path / "sd2.safetensors"
    save_file({f"cond_stage_model.model.{n}": v.clone() for n, v in state.items()}, file)
    node = text_node(file, tmp_path / "out")
    ours = build(yaml.safe_load(yaml.safe_dump(node)), "text.encoder")
    captions = ["red apple", "", "a cat"]
    expected = OpenClipCaptions(clip, layer=-2)(captions)
    torch.testing.assert_close(ours(captions).tokens, expected.tokens, atol=1e-5, rtol=1e-5)
    assert ours(captions).mask.all()


def test_the_text_encoders_of_sdxl_come_in(tmp_path: Path) -> None:
    """The first under OpenAI's names, the second under open_clip's."""
    first, second = tower(), tower(128)
    names = ldm_names(first, tmp_path / "first")
    state = {n: v for n, v in second.model.state_dict().items() if not n.startswith("visual.")}
    whole = {f"conditioner.embedders.0.transformer.{n}": v for n, v in names.items()}
    whole |= {f"conditioner.embedders.1.model.{n}": v.clone() for n, v in state.items()}
    save_file(whole, tmp_path / "xl.safetensors")
    node = text_node(tmp_path / "xl.safetensors", tmp_path / "out")
    ours = build(node | {"size": 64}, "text.encoder")
    condition = ours(["red apple"])
    assert condition.tokens.shape == (1, 8, 64 + 128)
    theirs = CLIPTextModelWithProjection.from_pretrained(tmp_path / "out" / "text_encoder_2").eval()
    with torch.no_grad():
        said = theirs(second.tokenizer(["red apple"]), output_hidden_states=True)
        embedding = second.model.encode_text(second.tokenizer(["red apple"]))
    torch.testing.assert_close(condition.tokens[..., 64:], said.hidden_states[-2])
    torch.testing.assert_close(condition.pooled[:, :12], embedding, atol=1e-5, rtol=1e-5)
    one = CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder")
    assert one.config.hidden_act == "quick_gelu"


def ldm_names(clip, folder: Path) -> dict[str, torch.Tensor]:
    """The tower under the names that transformers gave CLIP's text model when SDXL was made."""
    from ldm.interop.text import Tower, write_tower

    write_tower(folder / "text_encoder", Tower(*clip))
    return read_weights(folder / "text_encoder" / "model.safetensors")


def test_a_place_that_holds_nothing_is_told(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "odd.safetensors")
    assert read_network(tmp_path / "odd.safetensors") is None
    assert read_autoencoder(tmp_path / "odd.safetensors") is None
    with pytest.raises(ValueError, match="holds no backbone that is known here"):
        weights_at(tmp_path / "odd.safetensors", "backbone")
    with pytest.raises(FileNotFoundError, match="names on the hub are not fetched"):
        weights_at(tmp_path / "nowhere", "backbone")
