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
from ldm.commands.evidence_claims import claims
from ldm.commands.evidence_page import markdown, page
from ldm.commands.evidence_subject import Subject
from ldm.diffusion import Cosine, Data, Estimate, Objective, RectifiedFlow, Uniform
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


def test_kolmogorovs_probability_is_scipys():
    for statistic in (0.1, 0.25, 0.5, 0.8, 1.36, 2.0, 3.0):
        theirs = scipy.stats.kstwobign.sf(statistic)
        assert measures.kolmogorov_probability(statistic) == pytest.approx(theirs, abs=1e-9)
    assert measures.probability(-1.96) == pytest.approx(2 * scipy.stats.norm.sf(1.96))


def test_the_tests_for_noise_pass_noise_and_catch_what_is_none():
    """Over many sets of pure noise each statistic is a standard normal number; each kind of signal
    is caught by the test that looks for it."""
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(8, 4, 8, 8, generator=generator)
    errors = [
        measures.noise_tests(torch.randn(data.shape, generator=generator), data) for _ in range(200)
    ]
    for name in ("mean", "variance", "neighbours", "own picture"):
        values = [found[name] for found in errors]
        assert scipy.stats.kstest(values, "norm").pvalue > 1e-3, name
    shapes = [measures.probability(found["shape"]) for found in errors]
    assert scipy.stats.kstest(shapes, "uniform").pvalue > 1e-3
    noise = torch.randn(data.shape, generator=generator)
    signals = {
        "mean": noise + 0.2,
        "variance": 1.2 * noise,
        "neighbours": (noise + noise.roll(1, 3)) / 2**0.5,
        "own picture": 0.98 * noise + 0.2 * data,
        "shape": noise.sign(),
    }
    for name, signal in signals.items():
        assert abs(measures.noise_tests(signal, data)[name]) > 4, name


def test_destruction_ends_in_noise():
    """Data of two values is far from normal at t = 0 and gone at t = 1; the SNR is exact."""
    data = latents().sign()
    times = torch.tensor([0.1, 0.5, 1.0])
    found = measures.destruction(Ideal(RectifiedFlow()), data, times)
    assert found["shape"][0] > 10
    assert found["own picture"][0] > 10
    assert max(abs(found[name][2]) for name in ("mean", "variance", "neighbours", "shape")) < 3
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


class IdealNetwork(nn.Module):
    """The same as a network that predicts the data."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList()

    def forward(self, x_t, t, condition):
        return Cosine()(t)[0][:, None, None, None] * x_t


def test_the_exact_denoiser_of_gaussian_data_meets_the_linear_guess():
    """And the loss by time is the objective's own, here the squared error of the data."""
    objective = Objective(Cosine(), Data(), Uniform())
    times = torch.linspace(0.1, 0.9, 5)
    found = measures.prediction(objective, IdealNetwork(), latents(512), nothing(512), times)
    assert found["noise"] == pytest.approx(found["linear"], rel=0.03)
    assert found["data"] == pytest.approx([1 - x for x in found["linear"]], rel=0.03)
    for loss, half, exact in zip(found["loss"], found["loss_half"], found["linear"], strict=True):
        assert abs(loss - (1 - exact)) < 2 * half


def test_blur_takes_detail():
    picture = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = nn.functional.avg_pool2d(picture, 3, 1, 1)
    assert (measures.detail(blurred) < 0.5 * measures.detail(picture)).all()
    assert float(measures.detail(torch.ones(1, 3, 8, 8))) == 0
    checkers = (torch.arange(64).view(8, 8) + torch.arange(8)[:, None]) % 2 * 2.0 - 1
    assert float(measures.detail(checkers.expand(1, 3, 8, 8))) == 8.0


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
        negative="", prompt="red apple", steps=None, markdown=None,
    )  # fmt: skip
    subject = Subject.of(untrained(), arguments, tmp_path, torch.device("cpu"))
    found = list(claims(subject, [1, 2]))
    text = page(found, subject.about, tmp_path)
    written = markdown(found, subject.about, tmp_path, tmp_path.parent / "page.md")
    assert len({claim.figure for claim in found}) == len(found) == 5
    for claim in found:
        assert claim.title in text
        assert claim.title in written
        json.dumps(claim.numbers)
        assert f"({tmp_path.name}/{claim.figure})" in written
        with Image.open(tmp_path / claim.figure) as picture:
            assert picture.size[0] > 1000
    assert text.count('src="data:image/png;base64,') == 5  # stands alone
    assert "cannot be told from" in found[0].finding
    assert "a map a word" in found[3].reading
    assert "which may be chance" in found[3].finding
    cheap = found[4].numbers
    assert cheap["pixel"]["flops"] > 10 * cheap["latent"]["flops"]


def test_attention_is_watched_in_half_precision():
    attention = CrossAttention(8, 6, 2)
    watching = measures.AttentionWatch(attention, rows=1, side=4)
    with torch.autocast("cpu", torch.bfloat16), watching as watch:
        attention(torch.randn(2, 16, 8), torch.randn(2, 5, 6), None)
    assert watch.total.dtype == torch.float32
    torch.testing.assert_close(watch.total.sum(1), torch.ones(1, 4, 4))


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
