"""The text encoders of other projects' sources, as configuration nodes of ours.

A pipeline's folder is used where it lies. What a checkpoint of Stability holds is written anew, as
folders that transformers reads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from ldm.files import read_json
from ldm.interop.files import read_config, read_weights, write_folder
from ldm.interop.text import (
    END,
    Tower,
    tokenizer_beside,
    write_clip_tokenizer,
    write_tower,
)

_HUB = "ldm.frozen.captions_transformers.TransformersCaptions"
_JOINED = "ldm.frozen.captions_joined.JoinedCaptions"
_SIZED = "ldm.frozen.sizes.SizedCaptions"
_CLASSES = "ldm.frozen.captions_joined.ClassLabels"
_TINY_VISION = {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16}
# Where a checkpoint's text encoders stand: OpenAI's under transformers' names, open_clip's.
_PLACES = (
    ("cond_stage_model.transformer.", "cond_stage_model.model."),
    ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
)


def text_node(source: Path, out: Path) -> dict[str, Any] | None:
    """The node that encodes captions as the source's network was taught; None where there is no
    text. Files are written below `out` only where the source is a checkpoint."""
    if source.is_file():
        return _of_checkpoint(read_weights(source), out)
    if not (source / "model_index.json").is_file():
        return None
    index = read_config(source, "model_index.json")
    kind = index["_class_name"]
    if kind == "DiTPipeline":
        classes = read_config(source / "transformer").get("num_embeds_ada_norm", 1000)
        return {"_target_": _CLASSES, "names": classes}
    if kind.startswith("StableDiffusion3"):
        pair = [_hub(source, n, layer=-2, pooled="output") for n in ("", "_2")]
        if index.get("text_encoder_3", [None])[0] is None:
            return _joined("widths", pair)
        return _joined("tokens", [_joined("widths", pair), _hub(source, "_3", length=256)])
    if kind.startswith("StableDiffusionXL"):
        first = _hub(source, "", layer=-2)
        pair = [first, _hub(source, "_2", layer=-2, pooled="output")]
        return _sized(_joined("widths", pair))
    return _hub(source, "")


def _joined(join: str, encoders: list[dict[str, Any]]) -> dict[str, Any]:
    return {"_target_": _JOINED, "join": join, "encoders": encoders}


def _sized(node: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": _SIZED, "size": "${image_size}", "encoder": node}


def _hub(
    source: Path,
    number: str,
    *,
    layer: int = -1,
    pooled: str = "none",
    length: int | None = None,
) -> dict[str, Any]:
    parts = [f"text_encoder{number}", f"tokenizer{number}"]
    return {
        "_target_": _HUB,
        "source": str(source.resolve()),
        "subfolders": parts,
        "length": length or _longest(source / parts[1]),
        "layer": layer,
        "pooled": pooled,
        "masked": False,  # these pipelines attend to padding
    }


def _longest(tokenizer: Path) -> int:
    """Tokens of a caption, as the tokenizer's settings say; CLIP's 77 where they do not."""
    path = tokenizer / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    return int(settings.get("model_max_length", 77))


def _of_checkpoint(whole: Mapping[str, Tensor], out: Path) -> dict[str, Any] | None:
    for openai, open_source in _PLACES:
        first, second = _under(whole, openai), _under(whole, open_source)
        both = bool(first) and bool(second)
        nodes = []
        if first:
            layer = -2 if both else -1
            _write_openai(out / "text_encoder", first)
            nodes.append(_hub(out, "", layer=layer))
        if second:
            number = "_2" if both else ""
            tower = Tower(*_open_clip(second), layer=-1 if both else -2)
            write_tower(out / f"text_encoder{number}", tower, projected=both)
            layer, pooled = (-2, "output") if both else (-1, "none")
            nodes.append(_hub(out, number, layer=layer, pooled=pooled))
        if nodes:
            return _sized(_joined("widths", nodes)) if both else nodes[0]
    return None


def _under(whole: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in whole.items() if n.startswith(prefix)}


def _write_openai(folder: Path, state: Mapping[str, Tensor]) -> None:
    """CLIP's text model as OpenAI published it: heads of 64, and the quick form of GELU."""
    state = {n: v.contiguous() for n, v in state.items() if not n.endswith("position_ids")}
    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    layers = {n.split(".")[3] for n in state if n.startswith("text_model.encoder.layers.")}
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[
            0
        ],
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    write_folder(folder, config, state, stem="model")
    tokenizer = open_clip.SimpleTokenizer(context_length=config["max_position_embeddings"])
    write_clip_tokenizer(tokenizer_beside(folder), tokenizer, padding=END)


def _open_clip(state: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """The text half of an open_clip model, its shape read off the tensors; heads of 64."""
    vocabulary, width = state["token_embedding.weight"].shape
    context = state["positional_embedding"].shape[0]
    layers = {n.split(".")[2] for n in state if n.startswith("transformer.resblocks.")}
    text = {
        "context_length": context,
        "vocab_size": vocabulary,
        "width": width,
        "heads": max(1, width // 64),
        "layers": len(layers),
    }
    embedding = state["text_projection"].shape[1]
    with torch.device("meta"):
        model = open_clip.CLIP(embed_dim=embedding, vision_cfg=_TINY_VISION, text_cfg=text)
    # The picture's half stays without numbers: nobody asks for it.
    model.load_state_dict({**model.state_dict(), **state}, assign=True)
    return model, open_clip.SimpleTokenizer(context_length=context)
