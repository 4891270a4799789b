"""DiT and MMDiT against diffusers' own, with the same random weights."""

import json

import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel
from small_parts import classes, randomise

from ldm.interop.dit import diffusers_dit_table, dit_arguments, dit_to_diffusers
from ldm.interop.mmdit import mmdit_arguments, mmdit_table, mmdit_to_diffusers
from ldm.interop.original_dit import original_dit_table
from ldm.models import DiT, MMDiT
from ldm.types import Condition

LIMITS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


def dit(**changes) -> DiT:
    arguments = {"width": 16, "depth": 2, "heads": 2, "classes": 5, "frequency_shift": 1.0}
    network = DiT(4, **(arguments | {"time_offset": -1.0} | changes))
    randomise(network)
    return network


def mmdit(**changes) -> MMDiT:
    arguments = {"width": 16, "depth": 3, "heads": 2, "pooled_width": 5, "attend_padding": True}
    network = MMDiT(4, 6, **(arguments | changes))
    randomise(network)
    return network


@pytest.mark.parametrize(("dtype", "limit"), LIMITS)
@pytest.mark.parametrize("changes", [{}, {"patch": 1, "depth": 3}, {"out_channels": 8}])
def test_dit_equals_diffusers(changes: dict, dtype: torch.dtype, limit: float) -> None:
    network = dit(**changes).to(dtype)
    theirs = DiTTransformer2DModel.from_config(json.loads(json.dumps(dit_to_diffusers(network, 8))))
    theirs = theirs.eval().to(dtype)
    theirs.load_state_dict(diffusers_dit_table(network).give(network.state_dict()))
    x, t = torch.randn(2, 4, 8, 8, dtype=dtype), torch.tensor([0.3, 0.9], dtype=dtype)
    with torch.no_grad():
        ours = network(x, t, classes(3, 5))  # 5 is "no class"
        other = theirs(x, 1000 * t - 1, torch.tensor([3, 5])).sample
    assert (ours - other).abs().max() < limit


def test_dit_the_way_back_is_bit_equal() -> None:
    network = dit()
    back = DiT(**dit_arguments(dit_to_diffusers(network, 8)))
    given = diffusers_dit_table(network).give(network.state_dict())
    back.load_state_dict(diffusers_dit_table(back).take(given, "a test"))
    for name, value in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_copies_that_differ_are_refused() -> None:
    network = dit()
    table = diffusers_dit_table(network)
    given = table.give(network.state_dict())
    given["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"][0, 0] += 1
    with pytest.raises(ValueError, match="differ, and we hold them once"):
        table.take(given, "a test")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope": True, "swiglu": True}, "swiglu=True.*rope=True"),
        ({"classes": 0, "text_width": 3}, "text_width=3.*classes=0"),
        ({"frequency_shift": 0.0}, r"frequency_shift=0\.0"),
    ],
)
def test_what_diffusers_dit_lacks_is_named(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dit_to_diffusers(dit(**change), 8)


def test_a_velocity_towards_data_changes_its_sign() -> None:
    """SiT tells its network 1 - t and predicts the opposite of ours."""
    network = dit(time_scale=-1.0, time_offset=1.0, frequency_shift=0.0)
    plain = original_dit_table(network, 8, towards_data=False).give(network.state_dict())
    turned = dit(time_scale=-1.0, time_offset=1.0, frequency_shift=0.0)
    turned.load_state_dict(original_dit_table(turned, 8, towards_data=True).take(plain, "a test"))
    x, t = torch.randn(2, 4, 8, 8), torch.rand(2)
    assert torch.equal(turned(x, t, classes(0, 1)), -network(x, t, classes(0, 1)))


class AuthorsBlock(torch.nn.Module):
    """A block of LightningDiT written from its description, for comparison."""

    def __init__(self, state: dict[str, torch.Tensor], index: int, heads: int) -> None:
        super().__init__()
        prefix = f"blocks.{index}."
        self.state = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        self.cosine, self.sine = state["feat_rope.freqs_cos"], state["feat_rope.freqs_sin"]
        self.heads = heads

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(
            x, self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        )

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        half_turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).reshape(x.shape)
        return x * self.cosine + half_turned * self.sine

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.state[f"{name}.weight"]

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        parts = self.linear("adaLN_modulation.1", c * c.sigmoid()).chunk(6, dim=-1)
        s1, k1, g1, s2, k2, g2 = (part[:, None] for part in parts)
        b, n, d = x.shape
        qkv = self.linear("attn.qkv", self.norm("norm1", x) * (1 + k1) + s1)
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.turn(q), self.turn(k)
        weights = (q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5).softmax(-1)
        x = x + g1 * self.linear("attn.proj", (weights @ v).transpose(1, 2).reshape(b, n, d))
        gate, value = self.linear("mlp.w12", self.norm("norm2", x) * (1 + k2) + s2).chunk(2, -1)
        return x + g2 * self.linear("mlp.w3", gate * gate.sigmoid() * value)


def test_lightningdit_blocks_compute_what_their_authors_describe() -> None:
    network = dit(rms_norm=True, swiglu=True, rope=True, hidden=12, frequency_shift=0.0).double()
    state = original_dit_table(network, 8, towards_data=True).give(network.state_dict())
    theirs = AuthorsBlock(state, 1, heads=2)
    seen: list[tuple] = []
    network.blocks[1].register_forward_hook(lambda _, given, out: seen.append((*given, out)))
    network(torch.randn(2, 4, 8, 8).double(), torch.rand(2).double(), classes(0, 1))
    x, embedding, *_, out = seen[0]
    torch.testing.assert_close(theirs(x, embedding), out, atol=1e-6, rtol=0)


SD3_SHAPES = [
    {},
    {"qk_norm": True, "dual": 2},
    {"grid": 6, "base": 4, "patch": 1, "out_channels": 8},
    {"depth": 1},
]


@pytest.mark.parametrize(("dtype", "limit"), LIMITS)
@pytest.mark.parametrize("changes", SD3_SHAPES)
def test_mmdit_equals_diffusers(changes: dict, dtype: torch.dtype, limit: float) -> None:
    size = 4 if "grid" in changes else 8
    network = mmdit(**changes).to(dtype)
    config = json.loads(json.dumps(mmdit_to_diffusers(network, size)))
    theirs = SD3Transformer2DModel.from_config(config).to(dtype)
    theirs.load_state_dict(mmdit_table(network, size).give(network.state_dict()))
    x, tokens = torch.randn(2, 4, size, size, dtype=dtype), torch.randn(2, 3, 6, dtype=dtype)
    pooled, t = torch.randn(2, 5, dtype=dtype), torch.tensor([0.3, 0.9], dtype=dtype)
    with torch.no_grad():
        ours = network(x, t, Condition(tokens, torch.ones(2, 3, dtype=torch.bool), pooled))
        other = theirs(x, tokens, pooled, 1000 * t).sample
    if network.qk_norm:  # diffusers takes the norm of queries and keys in float32 whatever they are
        limit = max(limit, 1e-7)
    assert (ours - other).abs().max() < limit


@pytest.mark.parametrize("changes", SD3_SHAPES)
def test_mmdit_the_way_back_is_bit_equal(changes: dict) -> None:
    network = mmdit(**changes)
    back = MMDiT(**mmdit_arguments(mmdit_to_diffusers(network, 8)))
    given = mmdit_table(network, 8).give(network.state_dict())
    back.load_state_dict(mmdit_table(back, 8).take(given, "a test"))
    for name, value in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_positions_that_are_not_the_formula_are_refused() -> None:
    network = mmdit()
    table = mmdit_table(network, 8)
    given = table.give(network.state_dict())
    given["pos_embed.pos_embed"] += 0.1
    with pytest.raises(ValueError, match=r"pos_embed\.pos_embed holds other numbers"):
        table.take(given, "a test")


def test_a_picture_larger_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set backbone\.grid=4"):
        mmdit(grid=3, base=3)(torch.randn(1, 4, 8, 8), torch.rand(1), classes(0))
