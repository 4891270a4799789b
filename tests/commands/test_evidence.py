"""What `ldm evidence` measures, against closed forms; and the whole page for an untrained model."""

import json
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torch import nn
from untrained_model import untrained

from ldm.commands import evidence_measures as measures
from ldm.commands.evidence import page
from ldm.commands.evidence_claims import claims
from ldm.commands.evidence_subject import Subject
from ldm.diffusion import Cosine, Estimate, RectifiedFlow
from ldm.metrics import CLIPScore, clip_scores
from ldm.models.attention import CrossAttention
from ldm.types import Condition


def nothing(count):
    return Condition(torch.zeros(count, 1, 1), torch.ones(count, 1, dtype=torch.bool))


def latents(count=64):
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def test_kolmogorov_is_scipys():
    values = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 1.1 + 0.1
    theirs = scipy.stats.kstest(values.double().numpy(), "norm").statistic * 500**0.5
    assert measures.kolmogorov(values) == pytest.approx(theirs, rel=1e-9)


def test_interval_is_the_normal_one():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)) + 3
    found = measures.interval(values)
    low, high = scipy.stats.norm.interval(
        0.95, values.double().mean(), scipy.stats.sem(values.double().numpy())
    )
    assert found.mean - found.half == pytest.approx(float(low), abs=1e-4)
    assert found.mean + found.half == pytest.approx(float(high), abs=1e-4)


def test_destruction_ends_in_noise():
    """Data of two values is far from normal at t = 0 and gone at t = 1; the SNR is exact."""
    data = latents().sign()
    times = torch.tensor([0.1, 0.5, 1.0])
    found = measures.destruction(Ideal(RectifiedFlow()), data, times)
    assert found["kolmogorov"][0] > 10 > 1.36 > found["kolmogorov"][2]
    assert found["log10_snr"][:2] == pytest.approx([2 * np.log10(9), 0.0], abs=1e-5)
    assert found["correlation"][0] == pytest.approx(0.9 / (0.81 + 0.01) ** 0.5, abs=0.02)
    assert abs(found["correlation"][2]) < 4 / data.numel() ** 0.5


@dataclass(frozen=True)
class Ideal:
    """The exact denoiser of standard normal data where alpha^2 + sigma^2 = 1: it is linear."""

    schedule: Any

    def __call__(self, x_t, t, condition):
        alpha, sigma = (x[:, None, None, None] for x in self.schedule(t))
        return Estimate(alpha * x_t, sigma * x_t)


def test_the_exact_denoiser_of_gaussian_data_meets_the_linear_guess():
    condition = nothing(512)
    times = torch.linspace(0.1, 0.9, 5)
    found = measures.prediction(Ideal(Cosine()), latents(512), condition, times)
    assert found["noise"] == pytest.approx(found["linear"], rel=0.03)
    assert found["data"] == pytest.approx([1 - x for x in found["linear"]], rel=0.03)


def test_attention_maps_are_the_modules_own_weights():
    torch.manual_seed(0)
    attention = CrossAttention(8, 6, 2)
    x, tokens = torch.randn(3, 16, 8), torch.randn(3, 5, 6)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[:, 4] = False
    with measures.AttentionWatch(attention, rows=1, side=4) as watch:
        attention(x, tokens, mask)
    attention(x, tokens, mask)  # no longer watched
    maps = watch.total
    assert maps.shape == (1, 5, 4, 4)
    torch.testing.assert_close(maps.sum(1), torch.ones(1, 4, 4))
    assert maps[:, 4].abs().max() == 0
    by_head = nn.functional.scaled_dot_product_attention(
        attention.query(x).unflatten(-1, (2, -1)).transpose(1, 2),
        attention.key_value(tokens).unflatten(-1, (2, 2, -1)).unbind(2)[0].transpose(1, 2),
        torch.eye(5).expand(3, 2, 5, 5),
        attn_mask=mask[:, None, None],
    )
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), by_head.mean(1)[:1])


def test_words_find_their_tokens():
    assert measures.word_places("red firefighter", [1, 3]) == [
        ("red", slice(1, 2)),
        ("firefighter", slice(2, 5)),
    ]


def test_costs_of_a_step_are_the_arithmetic_of_its_products():
    """One 1x1 convolution: 2 c c h w multiply-adds forward, and for its weights backward; the
    input needs no gradient."""
    network = nn.Conv2d(4, 4, 1, bias=False)

    def objective(network, x0, condition, draws):
        return network(x0).square().mean(dim=(1, 2, 3))

    cost = measures.training_cost(network, objective, latents(8), nothing(8))
    assert cost.flops == 2 * (2 * 8 * 16 * 4 * 4)
    assert cost.seconds > 0
    assert cost.bytes >= latents(8).nbytes


def test_the_page_of_an_untrained_model_claims_nothing(tmp_path):
    arguments = Namespace(
        samples=8, batch_size=8, clip=None, device="cpu", sampler=None, guidance=None,
        negative="", prompt="red apple", steps=None,
    )  # fmt: skip
    subject = Subject.of(untrained(), arguments, tmp_path, torch.device("cpu"))
    found = list(claims(subject, [1, 2]))
    text = page(found, subject.about)
    assert len(found) == 5
    for claim in found:
        assert claim.title in text
        json.dumps(claim.numbers)
        for name in claim.figures:
            assert f'src="{name}"' in text
            with Image.open(tmp_path / name) as picture:
                assert picture.size[0] > 100
    assert "4-attention.png" in found[3].figures
    assert "which may be chance" in found[3].finding
    cheap = found[4].numbers
    assert cheap["pixel"]["flops"] > 10 * cheap["latent"]["flops"]


def test_the_emoji_clip_prefers_right_captions_on_real_pictures():
    """One-sided paired t-test against the captions moved on by half the set."""
    from ldm.data import ShardData, normalise, validation_batches
    from ldm.frozen.features import open_clip_features

    data = ShardData("asset:emoji/val-*.tar", 64)
    batch = next(iter(validation_batches(data, batch=64, rank=0, world=1, workers=0)))
    images, captions = normalise(batch["image"]), list(batch["caption"])
    clip = open_clip_features("asset:emoji_clip")
    half = len(captions) // 2
    shuffled = captions[half:] + captions[:half]
    right, wrong = (clip_scores(clip, images, c).numpy() for c in (captions, shuffled))
    assert scipy.stats.ttest_rel(right, wrong, alternative="greater").pvalue < 1e-3
    metric = CLIPScore(clip)
    metric.update(images, captions)
    assert float(metric.compute()) == pytest.approx(right.mean(), rel=1e-6)
