"""The watchdog names what hangs; recomputed blocks are the same function."""

import time

import lightning as L
import pytest
import torch
from torch import nn

from ldm.training.callbacks import Blocks, Watchdog
from ldm.training.callbacks.pictures import latent_pictures
from ldm.training.callbacks.record import over_ranks


@pytest.fixture
def trainer():
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet)


def test_a_hang_is_told_with_rank_phase_step_and_stack(tmp_path, trainer):
    dog = Watchdog(tmp_path, factor=2.0, least=0.02)
    dog.on_train_start(trainer, L.LightningModule())
    for _ in range(20):
        dog.on_train_batch_start(trainer)
        dog.on_train_batch_end(trainer)
    dog.on_train_batch_start(trainer)
    file = tmp_path / "hang-rank-0.txt"
    end = time.monotonic() + 20
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.1)
    dog.on_train_end(trainer, L.LightningModule())
    text = file.read_text()
    assert "rank 0 hangs in `step` at step 0" in text
    assert "test_a_hang_is_told" in text


def test_first_steps_may_take_longer(tmp_path):
    dog = Watchdog(tmp_path, factor=2.0, least=10.0)
    assert dog.patience() == 40.0
    dog._seconds.extend([30.0] * 20)
    assert dog.patience() == 60.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.calls = 0
        self.blocks[0].register_forward_pre_hook(self.count)

    def count(self, *_):
        self.calls += 1

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return x


@pytest.mark.parametrize("every", [1, 2])
def test_recomputed_blocks_give_the_same_gradients_under_the_same_names(every, trainer):
    torch.manual_seed(0)
    holder = L.LightningModule()
    holder.network = Net()
    x = torch.randn(2, 4)
    names = list(holder.state_dict())

    def gradients():
        holder.zero_grad()
        holder.network(x).sum().backward()
        return [parameter.grad.clone() for parameter in holder.parameters()]

    before = gradients()
    Blocks(recompute_every=every).setup(trainer, holder, "fit")
    assert list(holder.state_dict()) == names
    for one, other in zip(gradients(), before, strict=True):
        assert torch.equal(one, other)
    assert "inner" in holder.network.blocks[0].forward.__qualname__
    assert ("inner" in holder.network.blocks[1].forward.__qualname__) == (every == 1)


def test_a_negative_number_of_blocks_is_refused():
    with pytest.raises(ValueError, match="recompute_every=-1"):
        Blocks(recompute_every=-1)


def test_mean_and_largest_of_one_rank():
    mean, largest = over_ranks(torch.tensor([1.0, 2.0, 6.0]))
    assert (mean, largest) == (3.0, 6.0)


def test_latent_channels_are_shown_one_by_one_between_three_deviations():
    latent = torch.randn(2, 20, 4, 4) * 5 + 7
    shown = latent_pictures(latent, (8, 8))
    assert len(shown) == 2 * 16
    assert all(picture.shape == (3, 8, 8) for picture in shown)
    channel = latent[:, 3]
    expected = ((channel[1] - channel.mean()) / (3 * channel.std())).clamp(-1, 1)
    torch.testing.assert_close(shown[16 + 3][2, ::2, 1::2], expected)
    assert latent_pictures(torch.ones(1, 2, 4, 4), (8, 8))[1].abs().max() == 0
