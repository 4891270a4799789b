"""What is published on the hub, by its own configurations: understood, of the published size, and
fitting the names and shapes that diffusers' class has for it."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from ldm.interop.autoencoder import autoencoder_table
from ldm.interop.autoencoder_configs import autoencoder_arguments, latent_scale
from ldm.interop.files import write_json
from ldm.interop.networks import network_from_diffusers
from ldm.interop.reading import convolutional, read_network

UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
UNETS = {  # name: what its config.json says beside or instead of that, parameters
    "stable-diffusion-v1-5": (
        {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
        859_520_964,
    ),
    "stable-diffusion-2-1": (
        {
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "dual_cross_attention": False,
            "num_class_embeds": None,
            "only_cross_attention": False,
            "sample_size": 96,
            "upcast_attention": True,
            "use_linear_projection": True,
        },
        865_910_724,
    ),
    "stable-diffusion-xl-base-1.0": (
        {
            "addition_embed_type": "text_time",
            "addition_embed_type_num_heads": 64,
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "class_embed_type": None,
            "class_embeddings_concat": False,
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "cross_attention_dim": 2048,
            "cross_attention_norm": None,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "dual_cross_attention": False,
            "encoder_hid_dim": None,
            "encoder_hid_dim_type": None,
            "mid_block_only_cross_attention": None,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "num_attention_heads": None,
            "num_class_embeds": None,
            "only_cross_attention": False,
            "projection_class_embeddings_input_dim": 2816,
            "resnet_out_scale_factor": 1.0,
            "resnet_skip_time_act": False,
            "resnet_time_scale_shift": "default",
            "sample_size": 128,
            "time_cond_proj_dim": None,
            "time_embedding_act_fn": None,
            "time_embedding_dim": None,
            "time_embedding_type": "positional",
            "timestep_post_act": None,
            "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "upcast_attention": None,
            "use_linear_projection": True,
        },
        2_567_463_684,
    ),
}
DIT = {
    "_class_name": "Transformer2DModel",  # from before there was DiTTransformer2DModel
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_linear_projection": False,
}
SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
KL = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
KLS = {  # name: the same, mean and scale of latents
    "sd-vae-ft-mse": ({}, 0.0, 0.18215),
    "sdxl-vae": ({"force_upcast": True, "scaling_factor": 0.13025}, 0.0, 0.13025),
    "stable-diffusion-3": (
        {
            "latent_channels": 16,
            "latents_mean": None,
            "latents_std": None,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_post_quant_conv": False,
            "use_quant_conv": False,
        },
        0.0609,
        1.5305,
    ),
}


@pytest.mark.parametrize("name", UNETS)
def test_published_unets(name: str) -> None:
    changes, published = UNETS[name]
    config = UNET | changes
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(config)
    network, arguments = network_from_diffusers(config, theirs.state_dict(), name)
    assert sum(p.numel() for p in network.parameters()) == published
    assert arguments["time_offset"] == -1


@pytest.mark.parametrize("name", KLS)
def test_published_autoencoders(name: str) -> None:
    changes, mean, scale = KLS[name]
    config = KL | changes
    with torch.device("meta"):
        theirs = AutoencoderKL.from_config(config)
        ours = convolutional(autoencoder_arguments(config))
    autoencoder_table(ours).compare(theirs.state_dict(), name)
    assert latent_scale(config) == (mean, 1 / scale)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (DiTTransformer2DModel, DIT | {"num_attention_heads": 2, "num_layers": 1}),
        (
            SD3Transformer2DModel,
            SD3 | {"num_attention_heads": 2, "caption_projection_dim": 128, "num_layers": 1},
        ),
    ],
)
def test_published_transformers_made_small(kind: type, config: dict, tmp_path: Path) -> None:
    """With numbers, since their tables of positions are compared too."""
    theirs = kind.from_config(config)
    folder = tmp_path / "transformer"
    theirs.save_pretrained(folder)
    write_json(folder / "config.json", config)
    found = read_network(folder)
    assert found is not None
    last = theirs.proj_out_2 if kind is DiTTransformer2DModel else theirs.proj_out
    assert torch.equal(found.network.leave.linear.weight, last.weight)


def test_a_network_beside_the_scheduler_of_a_flow_is_told_its_time(tmp_path: Path) -> None:
    """Not the number of a step of a table, which is one less."""
    theirs = UNet2DConditionModel(
        block_out_channels=[8],
        down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"],
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=1,
        layers_per_block=1,
    )
    theirs.save_pretrained(tmp_path / "unet")
    write_json(tmp_path / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    for scheduler, offset in (
        ({"_class_name": "DDIMScheduler"}, -1),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, 0),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 0),
    ):
        (tmp_path / "scheduler").mkdir(exist_ok=True)
        write_json(tmp_path / "scheduler" / "scheduler_config.json", scheduler)
        found = read_network(tmp_path)
        assert found is not None
        assert found.network.time.offset == found.arguments["time_offset"] == offset
