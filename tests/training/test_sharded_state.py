"""States in parts: what some ranks wrote, any number of ranks reads, and one process alone."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ldm.runs.shards import flat, nested, read_shards, shapes, write_shards
from ldm.training.ema import follow, twin
from ldm.training.sharding import whole
from ldm.training.state import _load_weights, load_optimizer_state, optimizer_state, targets


class Net(nn.Module):
    """Two blocks of odd sizes, which do not divide by the ranks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 7), nn.Linear(7, 5)])
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return x


class Module(nn.Module):
    """A network and its average, in parts where `mesh` says so."""

    def __init__(self, mesh=None):
        super().__init__()
        torch.manual_seed(0)
        self.network = Net()
        self.average = twin(self.network)
        for child in (self.network, self.average) if mesh is not None else ():
            for part in (*child.blocks, child):
                fully_shard(part, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-2, fused=True)

    def step(self, number, rank=0, world=1):
        """One step on this rank's rows of a global batch of 12; clipped, and averaged."""
        rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(number))
        mine = rows[rank * 12 // world : (rank + 1) * 12 // world]
        self.network(mine).square().mean().backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.network.parameters()])
        nn.utils.clip_grads_with_norm_(self.network.parameters(), 0.05, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        follow(self.average, self.network, 0.9)
        return float(whole(norm))

    def tree(self):
        state = dict(self.state_dict())
        return {"state_dict": state, "optimizer": optimizer_state(self, self.optimizer)}

    def load(self, folder: Path):
        state = read_shards(folder, targets(self, shapes(folder)))
        _load_weights(self, state["state_dict"])
        load_optimizer_state(self, self.optimizer, state["optimizer"])

    def full(self):
        return {name: whole(tensor).clone() for name, tensor in flat(self.tree()).items()}


def close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name].float(), other[name].float(), atol=tolerance, rtol=0), name


def test_names_come_back():
    tree = {"a": {"b.c": torch.ones(1)}, "d": torch.zeros(2)}
    assert nested(flat(tree)) == tree


def test_one_process_continues_from_its_own_parts(tmp_path):
    left, stopped, resumed = Module(), Module(), Module()
    for number in range(6):
        left.step(number)
    for number in range(3):
        stopped.step(number)
    write_shards(tmp_path / "sharded", stopped.tree())
    resumed.load(tmp_path / "sharded")
    for number in range(3, 6):
        resumed.step(number)
    close(resumed.full(), left.full(), 0)
    alone = flat(read_shards(tmp_path / "sharded"))
    close(alone, stopped.full(), 0)


def test_another_model_is_refused(tmp_path):
    module = Module()
    write_shards(tmp_path / "sharded", {"state_dict": {"network.x": torch.ones(1)}})
    with pytest.raises(ValueError, match=r"another model \(state_dict"):
        module.load(tmp_path / "sharded")


def rank_of_many(rank, world, port, folder, first, last, read):
    """Steps first..last on `world` ranks, from the state in `folder`/read, saved as `last`."""
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    module = Module(init_device_mesh("cpu", (world,)))
    assert all(isinstance(p, DTensor) for p in module.parameters())
    if read:
        module.load(folder / read)
    for number in range(first, last):
        module.step(number, rank, world)
    write_shards(folder / f"at-{last}-of-{world}-from-{first}", module.tree())
    full = module.full()
    if rank == 0:
        torch.save(full, folder / f"full-{last}-of-{world}")
    distributed.barrier()
    distributed.destroy_process_group()


def on_ranks(world, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank_of_many, (world, port, *arguments), nprocs=world)


@pytest.mark.slow
def test_two_ranks_in_parts_equal_one_process_and_continue_on_one_and_on_four(tmp_path):
    alone = Module()
    for number in range(20):
        alone.step(number)
    on_ranks(2, tmp_path, 0, 20, None)
    close(torch.load(tmp_path / "full-20-of-2"), alone.full(), 1e-5)
    on_ranks(2, tmp_path, 0, 10, None)
    for world in (1, 2, 4):
        on_ranks(world, tmp_path, 10, 20, "at-10-of-2-from-0")
        close(torch.load(tmp_path / f"full-20-of-{world}"), alone.full(), 1e-5)
