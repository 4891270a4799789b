"""Each shipped process trains a small network that then draws what it was shown; the loss by time,
the learned uncertainty and the learned variance as a training has them."""

from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from ldm.commands.building import build
from ldm.commands.composing import composed
from ldm.diffusion import (
    DDIM,
    LearnedUncertainty,
    LearnedVariance,
    Objective,
    RectifiedFlow,
    TimeBins,
    Uniform,
    Velocity,
)
from ldm.frozen import LatentCodec
from ldm.models import DiT
from ldm.training.callbacks import LossByTime
from ldm.training.diffusion import LatentDiffusionModule
from ldm.training.optim import warmup_constant
from ldm.training.state import stand_at
from ldm.types import Condition, Draws, draws_for_seeds

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),  # the average
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]
CPU = torch.device("cpu")
PATTERNS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def words(kinds):
    """A token that says which of two pictures is meant."""
    tokens = torch.nn.functional.one_hot(kinds, 8).float()[:, None]
    return Condition(tokens, torch.ones(len(kinds), 1, dtype=torch.bool))


def kinds(rows):
    return torch.arange(rows) % 2


def pictures(step, rows=16):
    draws = Draws(0, step, range(rows), rows, CPU)
    return PATTERNS[kinds(rows)] + 0.1 * draws.normal((4, 8, 8), "spread"), kinds(rows), draws


@pytest.mark.parametrize(
    "process", ["rectified_flow", "ddpm_eps", "ddpm_v_zsnr", "cosine_x0", "edm"]
)
def test_every_process_trains_and_draws_what_it_was_told(process):
    config = composed(
        [
            *("experiment=emoji/diffusion", f"diffusion={process}", "backbone=dit_tiny"),
            *("latent={channels: 4, size: 8}", "text.width=8", "backbone.width=64"),
        ]
    )
    torch.manual_seed(0)
    network = build(config.backbone, "backbone")
    objective = build(config.diffusion, "diffusion")
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, fused=True)
    losses = []
    for step in range(200):
        x0, asked, draws = pictures(step)
        loss = objective(network, x0, words(asked), draws).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    noise = draws_for_seeds(range(8), CPU).normal((4, 8, 8), "start")
    drawn = DDIM(20)(objective.denoiser(network), noise, words(kinds(8)))
    own, other = (
        (drawn - PATTERNS[k]).square().mean((1, 2, 3)).sqrt() for k in (kinds(8), 1 - kinds(8))
    )
    assert own.mean() < 0.8 * other.mean(), (own.mean(), other.mean())


class Unchanged(LatentCodec):
    """A codec that leaves things as they are."""

    def __init__(self):
        pass

    def to(self, device):
        return self

    def encode(self, image, draws=None):
        return image


class Lengths:
    """A text encoder to which a caption's length is its kind."""

    width, pooled_width = 8, 0

    def to(self, device):
        return self

    def fingerprint(self):
        return "lengths"

    def __call__(self, captions):
        return words(torch.tensor([len(caption) for caption in captions]))


class Pictures(L.LightningDataModule):
    """Batches as the data module hands them over."""

    def train_dataloader(self):
        return DataLoader(self, batch_size=None)

    def __len__(self):
        return 12

    def __getitem__(self, step):
        x0, asked, _ = pictures(step)
        captions = ["a" * int(kind) for kind in asked]
        keys = [f"{step}-{row}" for row in range(len(x0))]
        return {"image": x0, "caption": captions, "key": keys, "position": step * len(x0)}

    def draws(self, position, rows, device):
        return Draws(0, position // rows, range(rows), rows, device)


class Losses(L.Callback):
    """Remembers what every batch lost."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.values.append(outputs["loss"].item() * trainer.accumulate_grad_batches)


class Told(DummyLogger):
    """Remembers the newest of each number."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_metrics(self, metrics, step=None):
        self.values |= metrics


def fit(objective, out_channels=4, accumulate=1, **settings):
    torch.manual_seed(0)
    network = DiT(
        in_channels=4,
        width=32,
        depth=1,
        heads=2,
        patch=2,
        text_width=8,
        out_channels=out_channels,
    )
    module = LatentDiffusionModule(
        network,
        objective,
        Unchanged(),
        Lengths(),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        lr_schedule=warmup_constant,
        **settings,
    )
    losses, told = Losses(), Told()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        **quiet,
        logger=told,
        accelerator="cpu",
        max_steps=6,
        log_every_n_steps=3,
        accumulate_grad_batches=accumulate,
        enable_model_summary=False,
        callbacks=[LossByTime(), losses],
    )
    trainer.fit(module, datamodule=Pictures())
    return module, losses.values, told.values


def test_a_bin_that_no_sample_fell_into_is_not_logged_and_what_waits_is_kept():
    """Not with the number that it had before, either: each log is of what came since."""
    module, told, callback = SimpleNamespace(bins=TimeBins(CPU)), Told(), LossByTime()
    trainer = L.Trainer(
        accelerator="cpu", logger=told, log_every_n_steps=2, enable_checkpointing=False
    )
    stand_at(trainer, 2)
    callback.on_fit_start(trainer, module)
    callback.on_train_start(trainer, module)
    callback.on_train_batch_end(trainer, module)  # the first turn of the step after: not yet
    assert not told.values
    stand_at(trainer, 4)
    module.bins.add(torch.tensor([0.1, 0.9]), torch.tensor([2.0, 4.0]))
    callback.on_train_batch_end(trainer, module)
    assert told.values == {
        "train/loss_by_time/0.000-0.125": 2.0,
        "train/loss_by_time/0.875-1.000": 4.0,
    }
    told.values.clear()
    module.bins.add(torch.tensor([0.1]), torch.tensor([6.0]))
    kept = callback.state_dict()
    stand_at(trainer, 6)
    module.bins.add(torch.tensor([0.9]), torch.tensor([9.0]))  # lost with the process
    callback.load_state_dict(kept)
    module.bins.add(torch.tensor([0.1]), torch.tensor([8.0]))
    callback.on_train_batch_end(trainer, module)
    assert told.values == {"train/loss_by_time/0.000-0.125": 7.0}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_by_time_has_the_mean_of_the_loss(accumulate):
    """Stratified times put two of sixteen rows in each of the eight bins."""
    objective = Objective(RectifiedFlow(), Velocity(), Uniform())
    _, losses, logged = fit(objective, accumulate=accumulate)
    names = [f"train/loss_by_time/{k / 8:.3f}-{(k + 1) / 8:.3f}" for k in range(8)]
    last = losses[-3 * accumulate :]
    assert sum(logged[name] for name in names) / 8 == pytest.approx(sum(last) / len(last), rel=1e-5)
    assert len({logged[name] for name in names}) == 8


def test_a_learned_uncertainty_and_variance_are_trained_and_only_the_network_is_averaged():
    objective = Objective(
        *(RectifiedFlow(), Velocity(), Uniform()), offset_noise=0.1, variance=LearnedVariance()
    )
    module, losses, logged = fit(objective, 8, uncertainty=LearnedUncertainty())
    state = module.state_dict()
    assert state["uncertainty.linear.weight"].abs().max() > 1e-3
    assert not any(name.startswith("average.") and "uncertainty" in name for name in state)
    means = [logged[name] for name in logged if "by_time" in name]
    assert abs(sum(means) / 8 - sum(losses[-3:]) / 3) > 1e-3  # bins hold what u does not change
    estimate = module.denoiser()(torch.randn(2, 4, 8, 8), torch.full((2,), 0.5), words(kinds(2)))
    assert estimate.width.shape == (2, 4, 8, 8)
