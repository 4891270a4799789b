"""Text encoders as pipelines hold them: transformers' own as they are, and the text tower of an
open_clip model as a CLIPTextModel, with its tokenizer.

open_clip pads a caption with token 0 and transformers, unless told otherwise, with end-of-text;
the ids of words agree. What is written here pads with token 0, which reads "!".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import nn
from transformers import CLIPTokenizer

from ldm.interop.files import write_folder
from ldm.interop.links import Table

PADDING, END = "!", "<|endoftext|>"


@dataclass(frozen=True)
class Tower:
    """An open_clip model, its tokenizer, and the layer whose states are told (-1 the last)."""

    model: Any
    tokenizer: Any
    layer: int = -1


@dataclass(frozen=True)
class HubText:
    """A text encoder of transformers with its tokenizer, the layer whose states are told, and
    whether its pooled output is told too. `masked`: padding does not count."""

    model: Any
    tokenizer: Any
    layer: int
    pooled: bool
    masked: bool

    @property
    def kind(self) -> str:
        """The class's name."""
        return type(self.model).__name__


Text = Tower | HubText


def write_text(folder: Path, text: Text, *, projected: bool = False) -> list[list[str]]:
    """The encoder in `folder` and its tokenizer beside it; returns, for both, the library and the
    class that load it. A tower is cut behind its layer, or left whole where it is `projected`."""
    if isinstance(text, Tower):
        write_tower(folder, text, projected=projected)
        kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        return [["transformers", kind], ["transformers", "CLIPTokenizer"]]
    text.model.save_pretrained(folder)
    text.tokenizer.save_pretrained(tokenizer_beside(folder))
    return [["transformers", text.kind], ["transformers", type(text.tokenizer).__name__]]


def write_tower(folder: Path, tower: Tower, *, projected: bool = False) -> None:
    """A CLIPTextModel in `folder` (with `projected` the one with projection), its tokenizer beside
    it."""
    layers = len(tower.model.transformer.resblocks) + (0 if projected else 1 + tower.layer)
    state = clip_text_table(tower.model, layers).give(tower.model.state_dict())
    if not projected:
        del state["text_projection.weight"]  # this class has none
    write_folder(folder, clip_text_config(tower.model, layers, projected=projected), state, "model")
    write_clip_tokenizer(tokenizer_beside(folder), tower.tokenizer)


def tokenizer_beside(folder: Path) -> Path:
    """Where the tokenizer of the text encoder in `folder` stands in a pipeline."""
    return folder.with_name(folder.name.replace("text_encoder", "tokenizer"))


def clip_text_table(model: nn.Module, layers: int) -> Table:
    """The first `layers` blocks of the tower of an open_clip CLIP; the picture's half of the
    model, and blocks beyond, have no place on the other side."""
    state = model.state_dict()
    prefix = "transformer.resblocks."
    without = [
        name
        for name in state
        if name.startswith("visual.")
        or name in ("logit_scale", "logit_bias")
        or (name.startswith(prefix) and int(name.removeprefix(prefix).split(".")[0]) >= layers)
    ]
    table = Table(model, without)
    table.same("token_embedding", "text_model.embeddings.token_embedding")
    table.stacked("positional_embedding", "text_model.embeddings.position_embedding.weight")
    for index in range(layers):
        here, there = f"{prefix}{index}", f"text_model.encoder.layers.{index}"
        for leaf in ("weight", "bias"):
            table.stacked(
                f"{here}.attn.in_proj_{leaf}",
                *(f"{there}.self_attn.{part}_proj.{leaf}" for part in "qkv"),
            )
        table.same(f"{here}.attn.out_proj", f"{there}.self_attn.out_proj")
        table.same(f"{here}.ln_1", f"{there}.layer_norm1")
        table.same(f"{here}.ln_2", f"{there}.layer_norm2")
        table.same(f"{here}.mlp.c_fc", f"{there}.mlp.fc1")
        table.same(f"{here}.mlp.c_proj", f"{there}.mlp.fc2")
    table.same("ln_final", "text_model.final_layer_norm")
    table.turned("text_projection", "text_projection.weight")
    return table


def clip_text_config(model: Any, layers: int, *, projected: bool) -> dict[str, Any]:
    """The config of the CLIPTextModel, or with `projected` the CLIPTextModelWithProjection."""
    block = model.transformer.resblocks[0]
    quick = type(block.mlp.gelu) is open_clip.model.QuickGELU
    start, end = 49406, 49407
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": model.vocab_size,
        "hidden_size": model.ln_final.normalized_shape[0],
        "intermediate_size": block.mlp.c_fc.out_features,
        "projection_dim": model.text_projection.shape[1],
        "num_hidden_layers": layers,
        "num_attention_heads": block.attn.num_heads,
        "max_position_embeddings": model.context_length,
        "hidden_act": "quick_gelu" if quick else "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": 0,
    }


def write_clip_tokenizer(folder: Path, tokenizer: Any, padding: str = PADDING) -> None:
    """The byte-pair tokenizer that open_clip ships, as transformers' CLIPTokenizer."""
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(word, word): number for word, number in tokenizer.encoder.items()}
    theirs = CLIPTokenizer(
        vocab=vocabulary,
        merges=list(tokenizer.bpe_ranks),
        pad_token=padding,
        model_max_length=tokenizer.context_length,
    )
    theirs.save_pretrained(folder)
