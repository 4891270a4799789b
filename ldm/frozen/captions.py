"""Captions in, conditions out: frozen text encoders, and a memory of what they said."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.frozen.clip import Clip
from ldm.frozen.fingerprints import text_fingerprint
from ldm.types import Condition


@runtime_checkable
class CaptionEncoder(Protocol):
    """Captions to conditions, one row a caption.

    `width` is that of the tokens, `pooled_width` that of the pooled vector, 0 where there is none.
    """

    @property
    def width(self) -> int:
        """Width of `Condition.tokens`."""

    @property
    def pooled_width(self) -> int:
        """Width of `Condition.pooled`, or 0."""

    def __call__(self, captions: list[str]) -> Condition:
        """The empty caption is the null condition of classifier-free guidance."""

    def to(self, device: torch.device) -> None:
        """Move weights; later conditions come from there."""

    def fingerprint(self) -> str:
        """Another one says other things of some caption: weights and settings, hashed."""


class Row(NamedTuple):
    """What an encoder said of one caption: `[l d]`, `[l]`, `[p]` or None."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor | None

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in self if part is not None)


class RowMemory:
    """The most recently used rows, up to a number of bytes.

    What is remembered is encoded a caption at a time: the last bits of a row depend on how many
    rows a matrix product has, and a training that continues must not depend on what it has seen
    before. With a limit of 0 nothing is remembered and the captions of a call are encoded at once,
    which is faster where captions seldom come again.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.rows: OrderedDict[str, Row] = OrderedDict()

    def __call__(self, captions: list[str], encode: Callable[[list[str]], Condition]) -> Condition:
        """Encode what is not remembered, once each; the rows are in the captions' order."""
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self.rows]
        for together in [[caption] for caption in missing] if self.limit else [missing]:
            fresh = encode(together)
            for index, caption in enumerate(together):
                pooled = None if fresh.pooled is None else fresh.pooled[index].clone()
                row = Row(fresh.tokens[index].clone(), fresh.mask[index].clone(), pooled)
                self.rows[caption] = row
                self.size += row.size
        for caption in captions:
            self.rows.move_to_end(caption)
        found = [self.rows[caption] for caption in captions]
        while self.size > self.limit:
            self.size -= self.rows.popitem(last=False)[1].size
        vectors = [row.pooled for row in found if row.pooled is not None]
        return Condition(
            torch.stack([row.tokens for row in found]),
            torch.stack([row.mask for row in found]),
            torch.stack(vectors) if vectors else None,
        )

    def clear(self) -> None:
        """Forget everything, as after a move to another device."""
        self.rows.clear()
        self.size = 0


class RememberingCaptions:
    """A frozen text encoder whose answers are remembered, up to `cache_bytes`. A subclass says in
    `encode` what it asks; it is asked here for the first time, for the widths. A subclass also
    tells its `fingerprint`, by which stored text states are known.

    The first caption that does not fit gives a warning that counts its tokens; later ones none.
    """

    def __init__(self, model: Any, cache_bytes: int) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.device = torch.device("cpu")
        self.memory = RowMemory(cache_bytes)
        self.cut_was_told = False
        null = self._frozen([""])
        self.width = null.tokens.shape[2]
        self.pooled_width = 0 if null.pooled is None else null.pooled.shape[1]

    def to(self, device: torch.device) -> None:
        """Move the weights; later conditions come from there."""
        self.device = device
        self.model.to(device)
        self.memory.clear()

    def __call__(self, captions: list[str]) -> Condition:
        """`[b l d]` with l the model's context length, whatever the captions' own."""
        return self.memory(captions, self._frozen)

    def encode(self, captions: list[str]) -> Condition:
        """What the model says, on its device."""
        raise NotImplementedError

    @torch.no_grad()
    def _frozen(self, captions: list[str]) -> Condition:
        # A batch in autocast would remember rounded rows that a later one in full precision sees.
        with torch.autocast(self.device.type, enabled=False):
            return self.encode(captions)

    def warn_of_cuts(self, captions: list[str], counts: Iterable[int], room: int) -> None:
        """Once, of the first caption with more tokens than there is room for."""
        if self.cut_was_told:
            return
        for caption, count in zip(captions, counts, strict=True):
            if count > room:
                self.cut_was_told = True
                warnings.warn(
                    f"a caption of {count} tokens is cut to the text encoder's {room}, and so will "
                    f"others be, without a further word: {caption[:60]!r}...",
                    stacklevel=2,
                )
                return


class OpenClipCaptions(RememberingCaptions):
    """Token states and the pooled embedding of an open_clip text tower.

    Tokens are the states of layer `layer` (-1 the last, -2 the one before) after the final layer
    norm; those up to and with end-of-text count. `pooled` is the projected text embedding, not
    normalised. Captions longer than the model's context are cut, and the first time that happens
    a warning counts their tokens. `cache_bytes` bounds the memory of captions already encoded (0:
    none, see `RowMemory`).
    """

    def __init__(self, clip: Clip, *, layer: int = -1, cache_bytes: int = 2**28) -> None:
        self.tokenizer = clip.tokenizer
        self.layer = layer
        super().__init__(clip.model, cache_bytes)

    def fingerprint(self) -> str:
        """Of the text tower alone."""
        weights = {
            name: value
            for name, value in self.model.state_dict().items()
            if not name.startswith(("visual.", "logit_"))
        }
        return text_fingerprint((self.layer, self.tokenizer.context_length), weights)

    def encode(self, captions: list[str]) -> Condition:
        """Token states and pooled embedding."""
        room = self.tokenizer.context_length
        counts = (len(self.tokenizer.encode(caption)) + 2 for caption in captions)
        self.warn_of_cuts(captions, counts, room)
        ids = self.tokenizer(captions).to(self.device)
        states = self.model.forward_intermediates(
            text=ids, normalize=False, normalize_intermediates=True
        )
        end = (ids == self.tokenizer.eot_token_id).int().argmax(dim=1)
        mask = torch.arange(ids.shape[1], device=ids.device) <= end[:, None]
        return Condition(states["text_intermediates"][self.layer], mask, states["text_features"])
