"""The training step against hand-written loops of two optimizers, and its promises about steps."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from autoencoder_ranks import train_on_ranks
from autoencoder_runs import Pictures, pictures, trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from ldm.frozen import fingerprint
from ldm.metrics.reconstruction import psnr, ssim
from ldm.models import (
    L1,
    Alignment,
    CriticLoss,
    Equivariance,
    FeatureDistance,
    Hinge,
    KLAutoencoder,
    NonSaturating,
    PatchCritic,
    QuantisedAutoencoder,
    ReconstructionLoss,
    Vanilla,
    VectorQuantizer,
)
from ldm.training.autoencoder import AutoencoderModule, balance
from ldm.training.nonfinite import NonFiniteError
from ldm.training.optim import warmup_constant

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the average
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
]
KL = 1e-3
WEIGHT = 0.3


def small_autoencoder(dtype: torch.dtype = torch.float32) -> KLAutoencoder:
    torch.manual_seed(0)
    network = KLAutoencoder(
        latent_channels=2, width=8, multipliers=(1, 2), blocks=1, groups=4, middle_attention=True
    )
    return network.to(dtype)


def small_critic(**settings: Any) -> CriticLoss:
    torch.manual_seed(1)
    adversary = settings.pop("adversary", Hinge())
    network = PatchCritic(width=8, layers=2, groups=4)
    return CriticLoss(network, adversary, **{"weight": WEIGHT, **settings})


def small_module(
    dtype: torch.dtype = torch.float32, critic: CriticLoss | None = None, **settings: Any
) -> AutoencoderModule:
    module = AutoencoderModule(
        settings.pop("autoencoder", None) or small_autoencoder(),
        ReconstructionLoss(L1(), kl=KL),
        optimizer=settings.pop("optimizer", partial(torch.optim.Adam, lr=1e-3)),
        lr_schedule=warmup_constant,
        critic=critic,
        ema_decay=settings.pop("ema_decay", 0.9),
        **settings,
    )
    return module.to(dtype)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def cross_entropy(logits: torch.Tensor, label: float) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


# What an autoencoder and a critic minimise, by the textbook, of (real and) fake logits.
TEXTBOOK: dict[str, tuple[Any, Any]] = {
    "Hinge": (
        lambda fake: -fake.mean(),
        lambda real, fake: 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()),
    ),
    "Vanilla": (
        lambda fake: -fake.mean(),
        lambda real, fake: 0.5 * (cross_entropy(real, 1) + cross_entropy(fake, 0)),
    ),
    "NonSaturating": (
        lambda fake: cross_entropy(fake, 1),
        lambda real, fake: cross_entropy(real, 1) + cross_entropy(fake, 0),
    ),
}


def ordinary_loop(
    images: torch.Tensor, steps: int, start: int, adaptive: bool, losses: str, r1: float
) -> dict[str, Any]:
    """Two optimizers, two backward passes, as textbooks have it."""
    fooling, catching = TEXTBOOK[losses]
    network = small_autoencoder(torch.float64)
    critic = small_critic().network.double()
    for_network = torch.optim.Adam(network.parameters(), lr=1e-3)
    for_critic = torch.optim.Adam(critic.parameters(), lr=1e-3)
    data = Pictures(images, 4)
    for step, batch in zip(range(steps), data.train_dataloader(), strict=False):
        image = batch["image"]
        posterior = network.encode(image)
        torch.set_default_dtype(torch.float64)  # as precision="64-true" does in a step
        noise = data.draws(batch["position"], 4, image.device).normal((2, 8, 8), "posterior")
        torch.set_default_dtype(torch.float32)
        made = network.decode(posterior.mean + posterior.std * noise)
        kept = (made - image).abs().mean(dim=(1, 2, 3)).mean()
        variance = posterior.std**2
        kl = 0.5 * (posterior.mean**2 + variance - 1 - variance.log()).sum(dim=(1, 2, 3))
        loss = kept + KL * (kl / image[0].numel()).mean()
        if step >= start:
            fooled = fooling(critic(made))
            scale = balance(kept, fooled, network.last_layer(), 100.0) if adaptive else 1.0
            loss = loss + WEIGHT * scale * fooled
        for_network.zero_grad()
        loss.backward()
        for_network.step()
        if step >= start:
            for_critic.zero_grad()
            real = critic(image.requires_grad_(r1 > 0))
            loss = catching(real, critic(made.detach()))
            if r1:
                (slope,) = torch.autograd.grad(real.sum(), image, create_graph=True)
                loss = loss + r1 / 2 * (slope**2).sum() / len(image)
            loss.backward()
            for_critic.step()
    return {"network": weights(network), "critic": weights(critic)}


@pytest.mark.parametrize(
    ("steps", "start", "adaptive", "losses", "r1"),
    [
        (50, 0, False, "Hinge", 0.0),
        (50, 0, True, "Hinge", 0.0),
        (50, 20, True, "Hinge", 0.0),
        (15, 5, False, "Hinge", 10.0),
        (15, 5, True, "Vanilla", 0.0),
        (15, 5, True, "NonSaturating", 1.0),
    ],
)
def test_fifty_steps_equal_two_optimizers(
    steps: int, start: int, adaptive: bool, losses: str, r1: float
) -> None:
    images = pictures(12, 16, dtype=torch.float64)
    adversary = {"Hinge": Hinge, "Vanilla": Vanilla, "NonSaturating": NonSaturating}[losses]()
    critic = small_critic(start=start, adaptive=adaptive, adversary=adversary, r1=r1)
    module = small_module(torch.float64, critic)
    trainer(steps, precision="64-true").fit(module, Pictures(images, 4))
    expected = ordinary_loop(images, steps, start, adaptive, losses, r1)
    assert module.critic is not None
    assert torch.allclose(weights(module.network), expected["network"], rtol=0, atol=1e-6)
    assert torch.allclose(weights(module.critic), expected["critic"], rtol=0, atol=1e-6)


def coded_autoencoder(**settings: Any) -> QuantisedAutoencoder:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 2, **settings)
    quantizer.counts += 1  # as after a first batch
    return QuantisedAutoencoder(quantizer, width=8, multipliers=(1, 2), blocks=1, groups=4)


@pytest.mark.parametrize("coded", [False, True, "cosine"])
def test_four_turns_of_two_equal_a_batch_of_eight(coded: bool | str) -> None:
    images = pictures(16, 16, dtype=torch.float64)
    results = []
    for turns in (1, 4):
        critic = small_critic(adaptive=False, lecam=0.1)
        codes = coded_autoencoder(cosine=coded == "cosine").double()
        module = small_module(torch.float64, critic, autoencoder=codes if coded else None)
        fit = trainer(5, precision="64-true", accumulate_grad_batches=turns)
        fit.fit(module, Pictures(images, 8, accumulate=turns))
        assert fit.global_step == 5
        results.append(module.state_dict())
    for name, whole in results[0].items():
        in_turns = results[1][name]
        assert torch.allclose(whole.double(), in_turns.double(), rtol=0, atol=1e-9), name


def gradients(module: AutoencoderModule, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one step's single backward pass: the network's and the critic's."""

    class Keep(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, module: Any) -> None:
            self.found = [
                torch.cat([p.grad.flatten().clone() for p in part.parameters()])
                for part in (module.network, module.critic)
            ]

    keep = Keep()
    trainer(1, [keep]).fit(module, Pictures(pictures(4, 16), 4))
    return keep.found[0], keep.found[1]


def test_neither_network_has_gradients_of_the_others_term() -> None:
    alone, untouched = gradients(small_module(critic=small_critic(start=5)), 5)
    beside, learning = gradients(small_module(critic=small_critic(start=0, ramp=10)), 0)
    pressed, _ = gradients(small_module(critic=small_critic(start=0)), 0)
    assert torch.equal(alone, beside)  # the critic learns, and the autoencoder feels nothing of it
    assert not torch.allclose(alone, pressed)
    assert untouched.abs().max() == 0
    module = small_module(critic=small_critic(start=0))
    image = pictures(4, 16)
    made = module.network.decode(module.network.encode(image).mean)
    module.critic.fooled(made).backward()
    assert all(p.grad is None for p in module.critic.parameters())
    assert any(p.grad is not None for p in module.network.parameters())
    assert learning.abs().max() > 0


def test_the_critic_does_not_move_before_its_start() -> None:
    module = small_module(
        critic=small_critic(start=4),
        optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5),
    )
    before = weights(module.critic)
    fit = trainer(4)
    fit.fit(module, Pictures(pictures(4, 16), 4))
    assert torch.equal(weights(module.critic), before)
    trainer(5).fit(module, Pictures(pictures(4, 16), 4))
    assert not torch.equal(weights(module.critic), before)


def test_interrupted_and_resumed_training_equals_uninterrupted(tmp_path: Any) -> None:
    images = pictures(8, 16)

    def module() -> AutoencoderModule:
        return small_module(critic=small_critic(start=1, lecam=0.1))

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole, resumed = module(), module()
    trainer(4, [Keep()]).fit(whole, Pictures(images, 4))
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"network", "average", "critic"}
    trainer(4).fit(resumed, Pictures(images, 4, done=2), ckpt_path=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_two_ranks_equal_one_process(tmp_path: Any) -> None:
    program = Path(__file__).parent / "autoencoder_ranks.py"
    train_on_ranks(1, str(tmp_path / "1.pt"))
    subprocess.run(  # a process of its own: DDP starts the second rank as a copy of the program
        [sys.executable, str(program), str(tmp_path / "2.pt")],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=300,
    )
    one, two = (torch.load(tmp_path / f"{ranks}.pt") for ranks in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(two[name].double(), value.double(), rtol=0, atol=1e-9), name


class _Shades:
    """Two frozen feature maps."""

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images, F.avg_pool2d(images, 4)]

    def to(self, device: torch.device) -> "_Shades":
        return self


def test_what_is_off_changes_no_bit_and_what_is_on_trains() -> None:
    images = pictures(8, 16)

    def trained(**settings: Any) -> AutoencoderModule:
        torch.manual_seed(0)
        module = small_module(**settings)
        trainer(3).fit(module, Pictures(images, 4))
        return module

    plain = weights(trained().network)
    never = Equivariance(probability=1e-12)
    assert torch.equal(weights(trained(equivariance=never).network), plain)
    assert not torch.equal(weights(trained(equivariance=Equivariance()).network), plain)
    alignment = Alignment(_Shades(), latent_channels=2, width=3)
    before = weights(alignment)
    aligned = trained(alignment=alignment)
    assert not torch.equal(weights(aligned.network), plain)
    assert not torch.equal(weights(alignment), before)
    assert {name.split(".")[0] for name in aligned.state_dict()} == {
        "network",
        "average",
        "alignment",
    }


def latent_slope(weight: float, *, adaptive: bool) -> torch.Tensor:
    """The gradient at the encoder's last layer of a step, aligned with this weight."""

    class Keep(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, module: Any) -> None:
            self.found = module.network.latent_layer().grad.clone()

    torch.manual_seed(0)
    alignment = Alignment(
        _Shades(), latent_channels=2, width=3, weight=weight, adaptive=adaptive, cosine_margin=0.0
    )
    module = small_module(torch.float64, alignment=alignment)
    module.loss = ReconstructionLoss(L1(), kl=0.0)
    keep = Keep()
    images = pictures(4, 16, dtype=torch.float64)
    trainer(1, [keep], precision="64-true").fit(module, Pictures(images, 4))
    return keep.found


def test_alignment_weighs_what_its_weight_says() -> None:
    plain = latent_slope(0.0, adaptive=False)
    once, twice = (latent_slope(weight, adaptive=False) - plain for weight in (0.1, 0.2))
    balanced = latent_slope(0.2, adaptive=True) - plain
    assert torch.allclose(2 * once, twice, rtol=1e-6, atol=1e-12)
    assert float(balanced.norm() / plain.norm()) == pytest.approx(0.2, rel=1e-6)
    cosine = F.cosine_similarity(balanced.flatten(), twice.flatten(), dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-9)


def test_alignment_and_a_frozen_encoder_exclude_each_other() -> None:
    alignment = Alignment(_Shades(), latent_channels=2, width=3)
    with pytest.raises(
        ValueError, match=r"module\.alignment moves the encoder, which module\.freeze"
    ):
        small_module(alignment=alignment, freeze_encoder=True)


@pytest.mark.parametrize("coded", [False, True])
def test_validation_tells_the_averages_quality(coded: bool) -> None:
    module = small_module()
    names = {"latent/active_channels", "latent/kl_0", "latent/kl_1"}
    if coded:
        torch.manual_seed(0)
        network = QuantisedAutoencoder(
            VectorQuantizer(16, 2), width=8, multipliers=(1, 2), blocks=1, groups=4
        )
        module = AutoencoderModule(
            network,
            ReconstructionLoss(L1(), perceptual=FeatureDistance(_Shades())),
            optimizer=partial(torch.optim.Adam, lr=1e-3),
            lr_schedule=warmup_constant,
        )
        names = {"codes/used", "codes/perplexity", "perceptual"}
    fit = trainer(2, limit_val_batches=1.0, val_check_interval=2)
    fit.fit(module, Pictures(pictures(8, 16), 4))
    found = {name: float(value) for name, value in fit.callback_metrics.items() if "val/" in name}
    common = {"psnr", "ssim", "loss", "latent/high_frequencies"}
    assert found.keys() == {f"val/{name}" for name in names | common}
    with torch.no_grad():
        image = pictures(8, 16)
        made = module.reconstruct(image)
    assert found["val/psnr"] == pytest.approx(float(psnr(made, image).mean()), abs=1e-4)
    assert found["val/ssim"] == pytest.approx(float(ssim(made, image).mean()), abs=1e-4)


def test_validation_tells_what_the_critic_thinks_once_it_has_joined() -> None:
    images = pictures(8, 16)
    for start in (0, 3):
        module = small_module(critic=small_critic(start=start))
        fit = trainer(2, limit_val_batches=1.0, val_check_interval=2)
        fit.fit(module, Pictures(images, 4))
        found = {n: float(v) for n, v in fit.callback_metrics.items() if "val/critic" in n}
        if start:
            assert not found
            continue
        with torch.no_grad():
            made = module.average.decode(module.average.encode(images).mean)
            real, fake = module.critic.network(images), module.critic.network(made)
        right = ((real > 0).sum() + (fake < 0).sum()) / (2 * real.numel())
        assert found == pytest.approx(
            {
                "val/critic/real": float(real.mean()),
                "val/critic/fake": float(fake.mean()),
                "val/critic/accuracy": float(right),
            },
            abs=1e-6,
        )


def test_clipping_treats_each_network_alone() -> None:
    module = small_module(critic=small_critic(start=0), optimizer=partial(torch.optim.SGD, lr=1.0))
    before = [weights(network) for network in (module.network, module.critic)]
    trainer(1, gradient_clip_val=1e-3).fit(module, Pictures(pictures(4, 16), 4))
    for network, old in zip((module.network, module.critic), before, strict=True):
        assert float((weights(network) - old).norm()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("coded", [False, True])
def test_decoder_only_training_leaves_latents_bit_for_bit(coded: bool) -> None:
    image = pictures(4, 16)
    settings = {"autoencoder": coded_autoencoder()} if coded else {}
    module = small_module(freeze_encoder=True, **settings)
    before, decoder = module.network.encode(image), weights(module.network.decoder)
    known = fingerprint(module.network)
    trainer(3).fit(module, Pictures(image, 4))
    for network in (module.network, module.average):
        assert fingerprint(network) == known
        after = network.encode(image)
        assert torch.equal(after.mean, before.mean)
        assert torch.equal(after.std, before.std)
    assert not torch.equal(weights(module.network.decoder), decoder)


class _Poison(L.Callback):
    """Makes one picture of one batch infinite."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.step:
            batch["image"] = batch["image"].clone()
            batch["image"][1, 0, 0, 0] = float("inf")


def test_stop_names_the_picture_and_keeps_the_weights() -> None:
    module = small_module(critic=small_critic(start=0))
    kept: list[torch.Tensor] = []

    class Before(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            kept.append(weights(module))

    with pytest.raises(NonFiniteError, match=r"step 2: .*picture-9.*on_nonfinite=skip"):
        trainer(5, [Before(), _Poison(2)]).fit(module, Pictures(pictures(4, 16), 4))
    assert torch.equal(weights(module), kept[-1])
    assert torch.isfinite(kept[-1]).all()


@pytest.mark.filterwarnings("ignore:step 2. the gradients are not finite")
def test_skip_leaves_the_step_out_and_goes_on() -> None:
    module = small_module(critic=small_critic(start=0, lecam=0.1), on_nonfinite="skip")
    fit = trainer(5, [_Poison(2)])
    fit.fit(module, Pictures(pictures(4, 16), 4))
    assert fit.global_step == 5
    assert module.nonfinite.skipped == 1
    assert torch.isfinite(weights(module)).all()


def test_under_fp16_a_loss_that_is_not_finite_stops_as_well() -> None:
    """The scaler alone would skip such steps for ever."""
    scaler = torch.amp.GradScaler("cpu")
    half = MixedPrecision("16-mixed", "cpu", scaler)
    with pytest.raises(NonFiniteError, match=r"step 2: the loss is not finite.*picture-9"):
        trainer(5, [_Poison(2)], plugins=half).fit(small_module(), Pictures(pictures(4, 16), 4))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="'ignore' is none of stop, skip, go_back"):
        small_module(on_nonfinite="ignore")
