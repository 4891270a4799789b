"""Captions as the numbers of their tokens, for a network that learns its own text transformer."""

import warnings

import open_clip
import torch

from ldm.frozen.fingerprints import text_fingerprint
from ldm.types import Condition


class TokenNumbers:
    """The numbers of the byte-pair tokens that open_clip ships, as `Condition.tokens` of width 1.

    Those up to and with end-of-text count. Captions of more than `length` tokens are cut, and the
    first time that happens a warning counts them. Float32 holds every number exactly.
    """

    width, pooled_width = 1, 0

    def __init__(self, length: int = 77) -> None:
        self.tokenizer = open_clip.SimpleTokenizer(context_length=length)
        self.vocabulary: int = self.tokenizer.vocab_size
        self.length = length
        self.device = torch.device("cpu")
        self.cut_was_told = False

    def to(self, device: torch.device) -> None:
        """Later conditions come from there."""
        self.device = device

    def fingerprint(self) -> str:
        """Of the vocabulary's size and of the length; what a token means, the network learns."""
        return text_fingerprint(("token numbers", self.vocabulary, self.length), {})

    def __call__(self, captions: list[str]) -> Condition:
        """`[b length 1]`."""
        self._warn_of_cuts(captions)
        numbers = self.tokenizer(captions)
        end = (numbers == self.tokenizer.eot_token_id).int().argmax(dim=1)
        mask = torch.arange(self.length) <= end[:, None]
        return Condition(numbers[..., None].float().to(self.device), mask.to(self.device))

    def _warn_of_cuts(self, captions: list[str]) -> None:
        if self.cut_was_told:
            return
        for caption in captions:
            count = len(self.tokenizer.encode(caption)) + 2
            if count > self.length:
                self.cut_was_told = True
                warnings.warn(
                    f"a caption of {count} tokens is cut to {self.length}, and so will others be, "
                    f"without a further word: {caption[:60]!r}...",
                    stacklevel=2,
                )
                return
