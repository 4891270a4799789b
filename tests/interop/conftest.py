"""What the interop tests share."""

import os
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from small_parts import random_parts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ldm.diffusion import Betas, Noise
from ldm.interop.pipelines import Parts, write_pipeline
from ldm.interop.schedulers import Described
from ldm.interop.text import write_clip_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"

with warnings.catch_warnings():
    # OmegaConf's DictConfig is, for beartype, annotated in a deprecated way.
    warnings.simplefilter("ignore")
    import ldm.commands.parts  # noqa: F401


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random text encoders as a pipeline's folder has them."""
    folder = tmp_path_factory.mktemp("texts")
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "projection_dim": 6,
        "eos_token_id": 49407,
        "pad_token_id": 0,
    }
    kinds = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_4": CLIPTextModelWithProjection,
    }
    for name, kind in kinds.items():
        kind(CLIPTextConfig(**shape)).save_pretrained(folder / name)
        write_clip_tokenizer(
            folder / name.replace("text_encoder", "tokenizer"),
            open_clip.SimpleTokenizer(context_length=8),
        )
    T5EncoderModel(
        T5Config(vocab_size=10, d_model=40, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(folder / "text_encoder_3")
    numbers = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "red", "apple", "cat"])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer_3")
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    network, first, tower = random_parts()
    described = Described(Betas(0.00085, 0.012, 2.0), Noise(), -1.0)
    folder = tmp_path / "pipeline"
    write_pipeline(folder, network, Parts(first, [tower], described, 4))
    return folder
