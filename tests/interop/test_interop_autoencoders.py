"""VQModel and AutoencoderDC against diffusers' own, with the same random weights, both ways."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, VQModel
from small_parts import randomise

from ldm.interop.autoencoder import autoencoder_table, compvis_autoencoder_table, load_autoencoder
from ldm.interop.autoencoder_configs import quantised_arguments, quantised_to_diffusers
from ldm.interop.compvis import autoencoder_arguments_of
from ldm.interop.dc_ae import dc_ae_arguments, dc_ae_table, dc_ae_to_diffusers
from ldm.interop.first_stage import FirstStage, write_first_stage
from ldm.interop.reading import convolutional, read_autoencoder
from ldm.models import (
    DeepCompressionAutoencoder,
    FiniteScalarQuantizer,
    QuantisedAutoencoder,
    VectorQuantizer,
)


def quantised(**changes) -> QuantisedAutoencoder:
    arguments = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
    quantizer = VectorQuantizer(16, 3)
    network = QuantisedAutoencoder(quantizer, **(arguments | changes)).eval()
    randomise(network)
    return network


def deep(**changes) -> DeepCompressionAutoencoder:
    arguments = {
        "latent_channels": 8,
        "widths": [16, 32, 64],
        "blocks": [1, 2, 1],
        "attention_levels": 2,
    }
    network = DeepCompressionAutoencoder(**(arguments | changes)).eval()
    randomise(network)
    return network


def pictures(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, dtype=dtype) * 2 - 1


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("changes", [{}, {"attention_levels": [1], "middle_attention": False}])
def test_a_quantised_autoencoder_equals_diffusers(
    changes: dict, dtype: torch.dtype, limit: float
) -> None:
    network = quantised(**changes).to(dtype)
    theirs = VQModel.from_config(json.loads(json.dumps(quantised_to_diffusers(network, 32))))
    theirs = theirs.eval().to(dtype)
    theirs.load_state_dict(autoencoder_table(network).give(network.state_dict()))
    image = pictures(dtype)
    with torch.no_grad():
        ours, other = network.encode(image).mean, theirs.encode(image).latents
        assert (ours - other).abs().max() < limit
        assert (network.decode(ours) - theirs.decode(ours).sample).abs().max() < limit


def test_a_quantised_autoencoder_comes_back_bit_equal_and_keeps_its_codebook() -> None:
    network = quantised()
    given = autoencoder_table(network).give(network.state_dict())
    back = convolutional(quantised_arguments(quantised_to_diffusers(network, 32)))
    load_autoencoder(back, autoencoder_table(back), given, "a test")
    for name, value in network.state_dict().items():
        if name not in ("quantizer.counts", "quantizer.updates"):
            assert torch.equal(back.state_dict()[name], value), name
    back.train()
    back.quantise(back.encode(pictures()).mean)
    moved = (back.quantizer.codebook - network.quantizer.codebook).abs().max()
    assert moved < 1e-2, "the first batch of a training on put the entries elsewhere"


def test_a_quantised_autoencoder_has_the_names_of_its_authors() -> None:
    network = quantised()
    given = compvis_autoencoder_table(network).give(network.state_dict())
    assert given["quantize.embedding.weight"].shape == (16, 3)
    arguments = autoencoder_arguments_of(given)
    assert arguments["quantizer"]["entries"] == 16
    assert arguments["multipliers"] == [1, 2]


# diffusers takes RMS norms in float32 whatever the numbers are.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-7)])
@pytest.mark.parametrize("changes", [{}, {"attention_levels": 0, "blocks": [1, 1, 1]}])
def test_a_deep_compression_autoencoder_equals_diffusers(
    changes: dict, dtype: torch.dtype, limit: float
) -> None:
    network = deep(**changes).to(dtype)
    theirs = AutoencoderDC.from_config(json.loads(json.dumps(dc_ae_to_diffusers(network)))).eval()
    theirs.to(dtype).load_state_dict(dc_ae_table(network).give(network.state_dict()))
    image = pictures(dtype)
    with torch.no_grad():
        ours, other = network.encode(image).mean, theirs.encode(image).latent
        assert (ours - other).abs().max() < limit * other.abs().max()
        decoded = theirs.decode(ours).sample
        assert (network.decode(ours) - decoded).abs().max() < limit * decoded.abs().max()


def test_a_deep_compression_autoencoder_comes_back_bit_equal() -> None:
    network = deep()
    given = dc_ae_table(network).give(network.state_dict())
    back = DeepCompressionAutoencoder(**dc_ae_arguments(dc_ae_to_diffusers(network)))
    back.load_state_dict(dc_ae_table(back).take(given, "a test"))
    for name, value in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


@pytest.mark.parametrize("make", [quantised, deep])
def test_folders_of_both_are_written_loaded_and_read(tmp_path: Path, make) -> None:
    network = make()
    channels = network.latent_channels
    library, name = write_first_stage(
        tmp_path, FirstStage(network, (0.0,) * channels, (2.0,) * channels), 32
    )
    theirs = {"VQModel": VQModel, "AutoencoderDC": AutoencoderDC}[name].from_pretrained(tmp_path)
    assert library == "diffusers"
    assert theirs.config.scaling_factor == 0.5
    found = read_autoencoder(tmp_path)
    assert found is not None
    assert (type(found.autoencoder), found.std) == (type(network), 2.0)
    image = pictures()
    with torch.no_grad():
        assert torch.equal(found.autoencoder.encode(image).mean, network.encode(image).mean)


def test_what_diffusers_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="patch=2"):
        quantised_to_diffusers(quantised(patch=2), 32)
    scalar = QuantisedAutoencoder(FiniteScalarQuantizer([3, 3]), width=8, multipliers=[1], groups=4)
    with pytest.raises(ValueError, match="quantizer of another kind"):
        quantised_to_diffusers(scalar, 32)
    with pytest.raises(ValueError, match="patch=2"):
        dc_ae_to_diffusers(deep(patch=2))


def test_what_ours_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"norm_type='spatial'"):
        quantised_arguments({"norm_type": "spatial"})
    with pytest.raises(ValueError, match=r"vq_embed_dim=7"):
        quantised_arguments({"vq_embed_dim": 7})
    published = {"encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3}
    with pytest.raises(ValueError, match=r"decoder_layers_per_block.*encoder_qkv_multiscales"):
        dc_ae_arguments(published)
