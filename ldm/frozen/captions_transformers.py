"""Text encoders of transformers: CLIP's, T5's, and the hidden states of any other model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5EncoderModel,
    UMT5EncoderModel,
)

from ldm.assets import resolve
from ldm.frozen.captions import RememberingCaptions
from ldm.frozen.fingerprints import text_fingerprint
from ldm.types import Condition

# A model class for the kinds whose AutoModel would be more than the text encoder.
_KINDS: dict[str, Any] = {
    "clip": CLIPTextModel,
    "clip_text_model": CLIPTextModel,
    "t5": T5EncoderModel,
    "umt5": UMT5EncoderModel,
}
POOLINGS = ("none", "output", "mean")


class TransformersCaptions(RememberingCaptions):
    """Token states of a text model of transformers, from a local folder (or a name on the hub that
    is cached already, or can be fetched).

    layer: whose states are told; -1 is the last after its final norm, -2 the one before, without.
    length: captions are padded, and cut with a warning, to so many tokens.
    pooled: "output" is the model's own pooled output (CLIP's is projected where the folder's
        architecture is CLIPTextModelWithProjection), "mean" the mean of the states that count.
    masked: only tokens that the tokenizer wrote count; Stable Diffusion counts padding too.
    subfolders: where model and tokenizer stand in a pipeline's folder, such as ["text_encoder",
        "tokenizer"].
    """

    def __init__(
        self,
        source: str,
        *,
        length: int,
        layer: int = -1,
        pooled: str = "none",
        masked: bool = True,
        subfolders: Sequence[str] = ("", ""),
        cache_bytes: int = 2**28,
    ) -> None:
        if pooled not in POOLINGS:
            raise ValueError(f"pooled={pooled!r} is not known: set one of {list(POOLINGS)}")
        self.tokenizer, model = _load(resolve(source), subfolders)
        if self.tokenizer.pad_token is None:  # decoders are trained without padding
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if not masked and self.tokenizer.padding_side == "left":
            raise ValueError(
                "masked=false would tell of padding before the caption: set masked=true"
            )
        self.length = length
        self.layer = layer
        self.pooling = pooled
        self.masked = masked
        super().__init__(model, cache_bytes)

    def fingerprint(self) -> str:
        """Of the model's weights and of how captions are put to it."""
        settings = (self.length, self.layer, self.pooling, self.masked)
        return text_fingerprint(settings, self.model.state_dict())

    def encode(self, captions: list[str]) -> Condition:
        """Token states `[b length d]`, and the pooled vector that was asked for."""
        counts = (len(ids) for ids in self.tokenizer(captions)["input_ids"])
        self.warn_of_cuts(captions, counts, self.length)
        written = self.tokenizer(
            captions,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        ids = written["input_ids"].to(self.device)
        mask = written["attention_mask"].to(self.device)
        # CLIP looks back only, so that padding behind a caption needs no mask in it.
        seen = mask if self.masked else None
        said = self.model(ids, attention_mask=seen, output_hidden_states=True)
        tokens = said.last_hidden_state if self.layer == -1 else said.hidden_states[self.layer]
        counted = mask.bool() if self.masked else torch.ones_like(mask, dtype=torch.bool)
        return Condition(tokens.float(), counted, self._pooled(said, tokens, mask))

    def _pooled(self, said: Any, tokens: Tensor, mask: Tensor) -> Tensor | None:
        if self.pooling == "none":
            return None
        if self.pooling == "mean":
            weight = mask[..., None].to(tokens.dtype)
            mean = (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
            return mean.float()
        pooled: Tensor | None = said.get("text_embeds", said.get("pooler_output"))
        if pooled is None:
            raise ValueError(
                f"{type(self.model).__name__} has no pooled output: set pooled=mean or pooled=none"
            )
        return pooled.float()


def _load(source: str, subfolders: Sequence[str]) -> tuple[Any, Any]:
    model_part, tokenizer_part = subfolders
    try:
        config = AutoConfig.from_pretrained(source, subfolder=model_part)
        tokenizer = AutoTokenizer.from_pretrained(source, subfolder=tokenizer_part)
        kind: Any = _KINDS.get(config.model_type, AutoModel)
        if "CLIPTextModelWithProjection" in (config.architectures or ()):
            kind = CLIPTextModelWithProjection
        model = kind.from_pretrained(source, subfolder=model_part, dtype=torch.float32)
    except OSError as error:
        where, words = Path(source) / model_part, Path(source) / tokenizer_part
        place = f"into {where}" if where == words else f"into {where} and {words}"
        raise FileNotFoundError(
            f"text encoder {source!r} is neither a folder that transformers saved nor can it be "
            f"fetched; put config.json, model.safetensors and the tokenizer's files {place}, or "
            f"set source to the folder that holds them ({str(error).splitlines()[0]})"
        ) from None
    return tokenizer, model.eval().requires_grad_(False)
