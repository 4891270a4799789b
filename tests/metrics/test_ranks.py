"""One rank, two ranks with uneven shares: the same number to the last bit; and a rank that is late,
or whose metric fails, holds up no other."""

import time
from datetime import timedelta
from functools import partial

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
    MetricGroup,
    Precision,
    Recall,
    Retrieval,
    reference_statistics,
)

COUNT, WIDTH = 41, 6
PATIENCE = 5  # seconds that a rank waits for another in an ordinary exchange


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


class Failing(CLIPScore):
    """A CLIP score that raises on one rank, `when` it is made, updated or computed."""

    def __init__(self, rank, when):
        self.failing = when if rank == here() else ""
        self.raise_if("made")
        super().__init__(Pixels(WIDTH))

    def raise_if(self, when):
        if self.failing == when:
            raise RuntimeError(f"cannot be {when}")

    def add(self, images, captions):
        super().add(images, captions)
        self.raise_if("updated")

    def compute(self):
        self.raise_if("computed")
        return super().compute()


def here():
    return distributed.get_rank() if distributed.is_initialized() else 0


def group_of(share, pause):
    """Of five metrics, three fail: in making, in an update, in computing, each on one rank."""
    features = Pixels(WIDTH)
    reference = reference_statistics(features, [pictures(1)])
    group = MetricGroup(
        {
            "made": partial(Failing, 0, "made"),
            "updated": partial(Failing, 1, "updated"),
            "good": partial(FrechetDistance, features, reference),
            "computed": partial(Failing, 0, "computed"),
            "last": partial(Retrieval, features, 2),
        }
    )
    results = []
    for turn in range(2):  # the second time as the first
        group.reset(torch.device("cpu"))
        for rows in share:
            group.update(pictures(0)[rows], captions()[rows])
        time.sleep(0 if turn else pause)
        results.append(group.compute())
    assert results[0] == results[1]
    return results[0]


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    meet(rank, f"{folder}/meeting")
    shares = [[slice(0, 7), slice(20, 41), slice(10, 20)], [slice(7, 10)]]
    torch.save(values(shares[rank]), f"{folder}/{rank}.pt")
    empty = [[slice(0, 41)], []]
    torch.save(values(empty[rank]), f"{folder}/{rank}-empty.pt")
    distributed.destroy_process_group()
    meet(rank, f"{folder}/impatient", timeout=timedelta(seconds=PATIENCE))
    uneven = [[slice(0, 30)], [slice(30, 41)]]
    torch.save(group_of(uneven[rank], 1.5 * PATIENCE * rank), f"{folder}/{rank}-group.pt")
    distributed.destroy_process_group()


def meet(rank, file, **options):
    place = f"file://{file}"
    distributed.init_process_group("gloo", place, rank=rank, world_size=2, **options)


@pytest.fixture(scope="module")
def alone():
    return values([slice(0, COUNT)])


@pytest.mark.parametrize("batch", [1, 6])
def test_any_batch_split_gives_the_same_bits(alone, batch):
    split = values([slice(start, start + batch) for start in range(0, COUNT, batch)])
    assert torch.equal(alone, split)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder where both have left what they found."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(one_of_two, (str(folder),), nprocs=2)
    return folder


def test_two_ranks_give_the_same_bits_as_one(alone, two_ranks):
    for name in ("0", "1", "0-empty", "1-empty"):
        assert torch.equal(torch.load(two_ranks / f"{name}.pt"), alone), name


def test_a_metric_that_fails_on_one_rank_is_told_of_on_both_and_the_others_are_right(two_ranks):
    """And one rank waits for the other for longer than the process group's time-out."""
    found = [torch.load(two_ranks / f"{rank}-group.pt") for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["made"] == "RuntimeError: cannot be made"
    assert found[0]["updated"] == "RuntimeError: cannot be updated (on rank 1)"
    assert found[0]["computed"] == "RuntimeError: cannot be computed"
    alone = group_of([slice(0, COUNT)], 0)
    assert (found[0]["good"], found[0]["last"]) == (alone["good"], alone["last"])


def test_one_process_goes_on_without_a_metric_that_fails():
    found = group_of([slice(0, 5), slice(5, COUNT)], 0)
    assert found["computed"] == "RuntimeError: cannot be computed"
    assert isinstance(found["updated"], float)  # only rank 1's fails
    assert isinstance(found["good"], float)
