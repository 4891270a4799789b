"""What a batch's condition is made of: dropped encoders, sizes, pictures beside the latent, and
patches that are not looked at."""

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf

from ldm.commands.text import text_encoder
from ldm.frozen import LatentCodec, LatentStatistics
from ldm.frozen.sizes import COUNT, SizedCaptions
from ldm.frozen.token_numbers import TokenNumbers
from ldm.models import DiT, KLAutoencoder, MMDiT, TextConditioned, UNet, with_sizes
from ldm.training.conditioning import Conditioning, Enlarging, Inpainting
from ldm.types import Condition, Draws


def draws(rows: int, seed: int = 0) -> Draws:
    return Draws(seed, 0, range(rows), rows, torch.device("cpu"))


class Word:
    """Says how long a caption is, as one token."""

    width, pooled_width = 1, 2

    def to(self, device: torch.device) -> None:
        pass

    def fingerprint(self) -> str:
        return "word"

    def __call__(self, captions: list[str]) -> Condition:
        length = torch.tensor([[float(len(caption))] for caption in captions])
        mask = torch.ones(len(captions), 1, dtype=torch.bool)
        return Condition(length[..., None], mask, length.expand(-1, 2).contiguous())


class Two:
    """Two such encoders side by side."""

    width, pooled_width, leaves = 2, 2, 2

    def to(self, device: torch.device) -> None:
        pass

    def fingerprint(self) -> str:
        return "two"

    def __call__(self, captions: list[str]) -> Condition:
        return self.apart([captions, captions])

    def apart(self, captions: list[list[str]]) -> Condition:
        one, two = (Word()(texts) for texts in captions)
        return Condition(torch.cat([one.tokens, two.tokens], dim=2), one.mask, one.pooled)


def codec() -> LatentCodec:
    torch.manual_seed(0)
    network = KLAutoencoder(latent_channels=2, width=4, multipliers=[1, 1], blocks=1, groups=2)
    return LatentCodec(network, LatentStatistics((0.0,) * 2, (1.0,) * 2, 2, None))


def test_each_encoder_is_dropped_by_itself() -> None:
    rows = 400
    batch = {"caption": ["ab"] * rows}
    conditioning = Conditioning(encoder_dropout=0.3)
    told = conditioning.told(Two(), codec(), batch, draws(rows), dropping=True).tokens[:, 0]
    assert set(told.unique().tolist()) == {0.0, 2.0}
    first, second = (told == 0).T
    for dropped in (first, second, first & second):
        expected = 0.09 if dropped is not first and dropped is not second else 0.3
        assert abs(dropped.float().mean() - expected) < 4 * (expected / rows) ** 0.5
    assert (conditioning.told(Two(), codec(), batch, draws(rows)).tokens == 2).all()


def test_sizes_are_each_pictures_own_while_it_is_learned_and_whole_when_drawn() -> None:
    captions = SizedCaptions(Word(), size=32)
    batch = {
        "caption": ["ab", ""],
        "image": torch.zeros(2, 3, 16, 24),
        "original": torch.tensor([[20, 30], [100, 50]], dtype=torch.int32),
        "corner": torch.tensor([[0, 3], [7, 0]], dtype=torch.int32),
    }
    told = Conditioning().told(captions, codec(), batch, None)
    sizes = torch.tensor([[20.0, 30, 0, 3, 16, 24], [100, 50, 7, 0, 16, 24]])
    assert torch.equal(told.pooled, with_sizes(Word()(["ab", ""]), sizes).pooled)
    whole = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
    assert torch.equal(captions(["ab"]).pooled, with_sizes(Word()(["ab"]), whole).pooled)
    assert captions.pooled_width == 2 + 256 * COUNT
    with pytest.raises(ValueError, match="latent shards hold none"):
        Conditioning().told(captions, codec(), {"caption": ["ab"]}, None)


def test_sizes_that_the_encoder_tells_already_are_not_told_twice() -> None:
    """As where text=sdxl meets text.sizes=true."""
    node = {
        "_target_": "ldm.frozen.sizes.SizedCaptions",
        "size": 32,
        "encoder": {"_target_": "ldm.frozen.captions_joined.ClassLabels", "names": 3},
    }
    for sizes in (False, True):
        text = {"encoder": node, "sizes": sizes}
        made = text_encoder(OmegaConf.create({"image_size": 32, "text": text}))
        assert made.pooled_width == 3 + 1 + 256 * COUNT


def test_a_box_is_painted_and_nothing_of_it_is_told() -> None:
    image = torch.rand(64, 3, 16, 16) * 2 - 1
    inpainting, frozen = Inpainting(whole=0.25), codec()
    paint = inpainting.boxes(image, draws(64))
    spatial = inpainting(image, frozen, draws(64))
    assert spatial.shape == (64, 1 + 2, 8, 8)
    share = paint.flatten(1).mean(dim=1)
    assert share.min() > 0
    whole = share == 1
    assert 4 <= whole.sum() <= 32
    # What lies under the paint has no influence, and blank is what a network is told of nothing.
    other = torch.where(paint.bool(), torch.rand_like(image), image)
    assert torch.equal(inpainting(other, frozen, draws(64)), spatial)
    blank = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand_as(spatial[whole])
    assert torch.equal(spatial[whole], blank)
    # A box, and no other shape: rows and columns of it are all alike.
    rows, columns = paint.amax(3, keepdim=True), paint.amax(2, keepdim=True)
    assert torch.equal(rows * columns, paint)


def test_a_small_picture_tells_no_more_than_a_small_picture() -> None:
    image, frozen = torch.rand(8, 3, 16, 16) * 2 - 1, codec()
    spatial = Enlarging(4, nothing=0.5)(image, frozen, draws(8))
    assert spatial.shape == (8, 2, 8, 8)
    nothing = ~spatial.flatten(1).any(dim=1)
    assert 0 < nothing.sum() < 8
    board = 0.5 - (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float()
    checked = Enlarging(4, nothing=0.0)(board.expand(8, 3, 16, 16), frozen, draws(8))
    grey = Enlarging(4, nothing=0.0)(torch.zeros(8, 3, 16, 16), frozen, draws(8))
    assert (checked - grey).abs().max() < 0.1 * (spatial - grey).abs().max()


def awake(network: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("switches", [{}, {"rope": True, "registers": 2}])
def test_patches_that_are_left_out_tell_the_others_nothing(switches: dict) -> None:
    """With every block masked, what a patch shows reaches another only if both are kept."""
    made = awake(DiT(2, width=16, depth=2, heads=2, patch=1, masked_blocks=[0, 2], **switches))
    x, t = torch.randn(3, 2, 4, 4), torch.rand(3)
    plain = Condition(torch.zeros(3, 0, 0), torch.ones(3, 0, dtype=torch.bool))
    condition = Conditioning(token_masking=0.75).masked(plain, made, x, draws(3))
    assert condition.kept.shape == (3, 4)
    kept = torch.zeros(3, 16, dtype=torch.bool).scatter(1, condition.kept, True).view(3, 1, 4, 4)
    out = made(x, t, condition)
    moved = made(torch.where(kept, x, x + 1), t, condition)
    assert torch.equal(torch.where(kept, out, 0), torch.where(kept, moved, 0))
    assert not torch.equal(out, moved)
    everything = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(
        made(x, t, dataclasses.replace(plain, kept=everything)), made(x, t, plain)
    )
    out.square().sum().backward()
    assert [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_cannot_be_done_is_refused_with_its_key() -> None:
    unet = UNet(4, 2, channels=[4], depths=[1], heads=[1], groups=2)
    masking = Conditioning(token_masking=0.5)
    with pytest.raises(ValueError, match="token_masking leaves patches out, which a UNet cannot"):
        masking.refuse_unfit(unet, Two())
    with pytest.raises(ValueError, match=r"set backbone\.masked_blocks=\[1, 3\]"):
        masking.refuse_unfit(DiT(2, width=8, depth=4, heads=1), Two())
    with pytest.raises(ValueError, match="encoder_dropout drops one of several"):
        Conditioning(encoder_dropout=0.5).refuse_unfit(unet, Word())
    with pytest.raises(ValueError, match="encoder_dropout=1"):
        Conditioning(encoder_dropout=1.0)
    with pytest.raises(ValueError, match="name no range of 2 blocks"):
        DiT(2, width=8, depth=2, heads=1, masked_blocks=[1, 5])


OWN = {
    "unet": lambda: UNet(4, 8, channels=[8], depths=[1], heads=[2], groups=4, residual_blocks=1),
    "dit": lambda: DiT(4, width=16, depth=1, heads=2, text_width=8),
    "mmdit": lambda: MMDiT(4, 8, width=16, depth=2, heads=2),
}


@pytest.mark.parametrize("name", OWN)
def test_a_text_transformer_is_learned_with_the_network(name: str) -> None:
    captions = TokenNumbers(length=6)
    made = awake(TextConditioned(OWN[name](), width=8, depth=2, heads=2, length=6))
    x, t = torch.randn(2, 4, 4, 4), torch.rand(2)
    told = captions(["red apple", "cat"])
    assert told.mask.sum(1).tolist() == [4, 3]
    out = made(x, t, told)
    out.square().sum().backward()
    unread = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert unread == []
    assert not torch.allclose(out, made(x, t, captions(["red apple", "dog"]))[:2])
    noise = torch.where(told.mask[..., None], told.tokens, 7.0)
    torch.testing.assert_close(made(x, t, dataclasses.replace(told, tokens=noise)), out)
    assert made.blocks is made.network.blocks
    with pytest.raises(ValueError, match="set text=own"):
        made(x, t, Condition(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)))


def test_long_captions_of_token_numbers_are_cut_with_one_warning() -> None:
    captions = TokenNumbers(length=4)
    with pytest.warns(UserWarning, match="a caption of 7 tokens is cut to 4"):
        told = captions(["a cat in the sky"])
    assert told.mask.all()
    made = TextConditioned(OWN["dit"](), width=8, depth=1, heads=2, length=3)
    with pytest.raises(ValueError, match=r"set backbone\.length=4"):
        made(torch.randn(1, 4, 4, 4), torch.rand(1), told)
