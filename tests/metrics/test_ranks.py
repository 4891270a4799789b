"""One rank, two ranks with uneven shares: the same number to the last bit."""

import os
import socket

import pytest
import torch
from known_features import Pixels, as_images
from torch import distributed
from torch.multiprocessing import spawn

from ldm.metrics import (
    ClipDiscrepancy,
    CLIPScore,
    Coverage,
    Density,
    Diversity,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Memorisation,
    Precision,
    Recall,
    Retrieval,
    reference_statistics,
)

COUNT, WIDTH = 41, 6


def pictures(seed):
    generator = torch.Generator().manual_seed(seed)
    return as_images(torch.randn(COUNT, WIDTH, generator=generator))


def captions():
    return [f"thing {number % 9}" for number in range(COUNT)]


def all_metrics():
    features = Pixels(WIDTH)
    reference = reference_statistics(features, [pictures(1)])
    against = [FrechetDistance, KernelDistance, ClipDiscrepancy, Memorisation]
    against += [Precision, Recall, Density, Coverage]
    alone = [InceptionScore(features), Diversity(features)]
    alone += [CLIPScore(features), Retrieval(features, 2)]
    return [metric(features, reference) for metric in against] + alone


def values(shares):
    """All metrics over some of the pictures, batch by batch."""
    results = []
    for metric in all_metrics():
        for rows in shares:
            metric.update(pictures(0)[rows], captions()[rows])
        before = [torch.clone(metric.count)]
        results.append(metric.compute())
        assert metric.count == before[0]  # the rank's own sums come back after the exchange
    return torch.stack(results)


def one_of_two(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    shares = [[slice(0, 7), slice(20, 41), slice(10, 20)], [slice(7, 10)]]
    torch.save(values(shares[rank]), f"{folder}/{rank}.pt")
    empty = [[slice(0, 41)], []]
    torch.save(values(empty[rank]), f"{folder}/{rank}-empty.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone():
    return values([slice(0, COUNT)])


@pytest.mark.parametrize("batch", [1, 6])
def test_any_batch_split_gives_the_same_bits(alone, batch):
    split = values([slice(start, start + batch) for start in range(0, COUNT, batch)])
    assert torch.equal(alone, split)


def test_two_ranks_give_the_same_bits_as_one(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(one_of_two, (port, str(tmp_path)), nprocs=2)
    for name in ("0", "1", "0-empty", "1-empty"):
        assert torch.equal(torch.load(tmp_path / f"{name}.pt"), alone), name
