"""Text encoders against the libraries that own them."""

import warnings

import pytest
import torch

from ldm.frozen.captions import OpenClipCaptions
from ldm.frozen.clip import Clip, new_clip

VISION = {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    clip = new_clip(12, VISION, TEXT)
    return Clip(clip.model.eval(), clip.tokenizer)


def test_tokens_mask_and_pooled_are_open_clips(clip: Clip) -> None:
    captions = ["red apple", "", "a very small yellow full moon in the sky"]
    states: list[torch.Tensor] = []
    watch = clip.model.ln_final.register_forward_hook(lambda *call: states.append(call[2]))
    pooled = clip.model.encode_text(clip.tokenizer(captions))
    watch.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        condition = OpenClipCaptions(clip)(captions)
    torch.testing.assert_close(condition.tokens, states[0])
    torch.testing.assert_close(condition.pooled, pooled)
    assert condition.mask.sum(1).tolist() == [4, 2, 8]  # start, words, end; cut at eight


def test_layer_minus_two_is_what_the_last_block_is_given(clip: Clip) -> None:
    states: list[torch.Tensor] = []
    watch = clip.model.transformer.resblocks[-1].register_forward_pre_hook(
        lambda _, inputs: states.append(inputs[0])
    )
    clip.model.encode_text(clip.tokenizer(["red apple"]))
    watch.remove()
    condition = OpenClipCaptions(clip, layer=-2)(["red apple"])
    torch.testing.assert_close(condition.tokens, clip.model.ln_final(states[0]))


def test_remembered_captions_are_the_same_and_memory_is_bounded(clip: Clip) -> None:
    row = 4 * (8 * 16 + 12) + 8  # float32 tokens and pooled, bool mask
    captions = OpenClipCaptions(clip, cache_bytes=2 * row)
    first = captions(["a", "b", "a", "c"])
    assert captions.memory.size <= 2 * row
    again = captions(["c", "a", "b"])
    torch.testing.assert_close(again.tokens, first.tokens[[3, 0, 1]])
    torch.testing.assert_close(again.pooled, first.pooled[[3, 0, 1]])


def test_a_row_is_the_same_to_the_last_bit_whatever_was_asked_before() -> None:
    torch.manual_seed(0)
    clip = new_clip(12, VISION, {**TEXT, "width": 256, "heads": 4})
    words = [f"word {number}" for number in range(40)]
    at_once, bit_by_bit = OpenClipCaptions(clip), OpenClipCaptions(clip)
    for count in (1, 3, 7):
        bit_by_bit(words[:count])
    one, other = at_once(words), bit_by_bit(words)
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.pooled, other.pooled)


def test_without_a_memory_a_call_is_encoded_at_once(clip: Clip) -> None:
    captions = OpenClipCaptions(clip, cache_bytes=0)
    calls: list[object] = []
    watch = clip.model.token_embedding.register_forward_hook(lambda *call: calls.append(call))
    captions(["a", "b", "a"])
    captions(["a", "b", "a"])
    watch.remove()
    assert len(calls) == 2
    assert captions.memory.size == 0


def test_what_is_remembered_is_not_encoded_again(clip: Clip) -> None:
    captions = OpenClipCaptions(clip)
    captions(["red apple"])
    calls: list[object] = []
    watch = clip.model.ln_final.register_forward_hook(lambda *call: calls.append(call))
    captions(["red apple", "red apple"])
    watch.remove()
    assert calls == []


def test_a_long_caption_warns_once_and_counts(clip: Clip) -> None:
    captions = OpenClipCaptions(clip)
    with pytest.warns(UserWarning, match="12 tokens is cut to the text encoder's 8"):
        captions(["one two three four five six seven eight nine ten"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captions(["eleven two three four five six seven eight nine ten"])


def test_autocast_around_does_not_change_what_is_remembered(clip: Clip) -> None:
    plain = OpenClipCaptions(clip)(["red apple"])
    with torch.autocast("cpu", torch.bfloat16):
        cast = OpenClipCaptions(clip)(["red apple"])
    assert torch.equal(plain.tokens, cast.tokens)
