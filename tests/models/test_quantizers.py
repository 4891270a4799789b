"""Codebooks against brute force and closed forms; grids against their definition; the gradient."""

import math

import pytest
import torch

from ldm.models import FiniteScalarQuantizer, VectorQuantizer


def latents(count: int = 8, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, 5, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cosine", [False, True])
def test_the_nearest_entry_is_chosen(cosine: bool) -> None:
    quantizer = VectorQuantizer(17, 3, cosine=cosine).eval()
    latent = quantizer.prepare(latents())
    found = quantizer(latent)
    vectors = latent.movedim(1, -1)
    distances = (vectors[..., None, :] - quantizer.codebook).square().sum(dim=-1)
    assert torch.equal(found.codes, distances.argmin(dim=-1))
    chosen = quantizer.codebook[found.codes].movedim(-1, 1)
    assert torch.allclose(found.latent, chosen, atol=1e-6)
    assert float(found.penalty) == pytest.approx(
        0.25 * float((latent - chosen).square().mean()), rel=1e-5
    )
    if cosine:
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(()), atol=1e-5)


def test_gradients_pass_straight_through_and_the_penalty_pulls_to_the_entry() -> None:
    for quantizer in (VectorQuantizer(9, 3).eval(), FiniteScalarQuantizer([3, 4, 5])):
        latent = quantizer.prepare(latents() * 0.3).requires_grad_()
        slope = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
        (quantizer(latent).latent * slope).sum().backward()
        assert torch.allclose(latent.grad, slope)
    quantizer = VectorQuantizer(9, 3, commitment=0.5).eval()
    latent = latents().requires_grad_()
    found = quantizer(latent)
    found.penalty.backward()
    expected = 2 * 0.5 * (latent - found.latent).detach() / latent.numel()
    assert torch.allclose(latent.grad, expected, atol=1e-7)


def test_an_entry_is_the_running_mean_of_its_vectors() -> None:
    quantizer = VectorQuantizer(2, 1, decay=0.9, revive_below=0.0)
    quantizer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    quantizer.counts.fill_(4.0)
    for turn in ([1.0, 2.0], [3.0, 8.0]):  # of one step
        quantizer(torch.tensor(turn).view(2, 1, 1, 1))
    assert float(quantizer.codebook[1]) == 10
    quantizer.stepped()
    first = (0.9 * 4 * 0.0 + 0.1 * 6.0) / (0.9 * 4 + 0.1 * 3)
    second = (0.9 * 4 * 10.0 + 0.1 * 8.0) / (0.9 * 4 + 0.1 * 1)
    assert torch.allclose(quantizer.codebook.flatten(), torch.tensor([first, second]))
    assert torch.allclose(quantizer.counts, torch.tensor([3.9, 3.7]))


def test_a_codebook_learns_in_training_only_and_from_finite_batches_only() -> None:
    quantizer = VectorQuantizer(9, 3)
    quantizer.eval()(latents())
    quantizer.stepped()
    assert int(quantizer.updates) == 0
    quantizer.train()(latents())
    quantizer.stepped()
    assert int(quantizer.updates) == 1
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    broken = latents()
    broken[0, 0, 0, 0] = float("nan")
    quantizer(broken)
    quantizer.stepped()
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_dead_entries_come_alive() -> None:
    quantizer = VectorQuantizer(64, 3)
    quantizer.counts.fill_(5.0)
    quantizer.codebook.fill_(1e3)  # all but the first of equals are out of reach
    for step in range(1500):
        quantizer(latents(seed=step % 20))
        quantizer.stepped()
    codes = torch.cat([quantizer.eval()(latents(seed=s)).codes.flatten() for s in range(20)])
    assert len(codes.unique()) > 0.9 * 64


def test_scalars_reach_every_level_and_no_other() -> None:
    levels = [2, 3, 8, 5]
    quantizer = FiniteScalarQuantizer(levels)
    wide = torch.linspace(-9, 9, 20001).view(-1, 1, 1, 1).repeat(1, 4, 1, 1)
    found = quantizer(quantizer.prepare(wide))
    for channel, count in enumerate(levels):
        assert len(found.latent[:, channel].unique()) == count
    each = [found.latent[:, channel].flatten().unique() for channel in range(4)]
    mixed = quantizer(torch.cartesian_prod(*each)[..., None, None])
    assert len(mixed.codes.unique()) == quantizer.entries == 2 * 3 * 8 * 5
    assert (int(mixed.codes.min()), int(mixed.codes.max())) == (0, quantizer.entries - 1)
    outside = quantizer(torch.tensor([[9.0] * 4, [-9.0] * 4])[..., None, None])
    for codes, extreme in zip(outside.latent.flatten(1), (wide.max(), wide.min()), strict=True):
        at_end = quantizer(quantizer.prepare(extreme.expand(1, 4, 1, 1))).latent.flatten()
        assert torch.equal(codes, at_end)
    assert outside.codes.flatten().tolist() == [quantizer.entries - 1, 0]
    pairs = torch.cat([mixed.latent.movedim(1, -1).flatten(0, -2), mixed.codes.view(-1, 1)], dim=1)
    assert len(pairs.unique(dim=0)) == quantizer.entries  # a code is a vector and the reverse


def test_diversity_is_what_the_entropy_of_all_codes_lacks() -> None:
    """By its definition over the whole grid at once; 0 for a grid that is full, and nothing when
    it is off or nobody trains."""
    levels = [4, 3, 5]
    quantizer = FiniteScalarQuantizer(levels, diversity=0.5).double()
    latent = quantizer.prepare(latents(channels=3).double()).requires_grad_()
    penalty = quantizer(latent).penalty
    steps = [torch.arange(count) - count // 2 for count in levels]
    grid = torch.cartesian_prod(*steps).double()
    vectors = (latent * quantizer.widths).movedim(1, -1).reshape(-1, 1, 3)
    shares = (-2 * (vectors - grid).square().sum(dim=-1)).softmax(dim=1).mean(dim=0)
    entropy = torch.distributions.Categorical(shares).entropy()
    torch.testing.assert_close(penalty, 0.5 * (1 - entropy / math.log(60)))
    same = torch.zeros(9, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    quantizer(same).penalty.backward()
    assert bool(torch.isfinite(same.grad).all())
    full = FiniteScalarQuantizer([8, 8], diversity=1.0)
    every = torch.cartesian_prod(*[(torch.arange(8) - 4) / 4] * 2)[..., None, None]
    assert float(full(every).penalty) < 1e-3 < 0.5 < float(full(every[:1]).penalty)
    assert full.eval()(every).penalty is None
    assert FiniteScalarQuantizer([8, 8])(every).penalty is None


def test_impossible_codebooks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"quantizer.entries=0: a codebook needs 2"):
        VectorQuantizer(0, 3)
    with pytest.raises(ValueError, match=r"channels=1 with cosine=true: .* give 2 channels"):
        VectorQuantizer(8, 1, cosine=True)
    with pytest.raises(ValueError, match=r"quantizer.levels=\[8, 1\]: give 2 levels or more"):
        FiniteScalarQuantizer([8, 1])
    with pytest.raises(ValueError, match="entries of 4 numbers, latents have 3 channels"):
        VectorQuantizer(8, 4)(latents())
    with pytest.raises(ValueError, match="levels for 2 channels, latents have 3"):
        FiniteScalarQuantizer([8, 8])(latents())
