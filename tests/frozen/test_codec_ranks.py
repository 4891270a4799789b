"""Latent statistics over two ranks with uneven shares: those of one process."""

import dataclasses

import torch
from torch import distributed
from torch.multiprocessing import spawn

from ldm.data import valid_pictures
from ldm.frozen import latent_statistics
from ldm.models import KLAutoencoder

UNEVEN = ([(0, 2), (6, 9)], [(2, 5), (5, 6)])  # pictures of each rank's batches, of 3 rows
ONE_HAS_NONE = ([(0, 3), (3, 6), (6, 9)], [(9, 9)])


def autoencoder():
    torch.manual_seed(0)
    return KLAutoencoder(
        latent_channels=3, width=8, multipliers=(1, 2), blocks=1, groups=4
    ).double()


def batches(spans):
    """Filled up to 3 rows with what no picture is; the last three pictures are larger."""
    generator = torch.Generator().manual_seed(1)
    pictures = [torch.rand(3, 8, 8, generator=generator).double() * 2 - 1 for _ in range(6)]
    pictures += [torch.rand(3, 8, 12, generator=generator).double() * 2 - 1 for _ in range(3)]
    for first, last in spans:
        rows = pictures[first:last] + [torch.full((3, 8, 8), 7.0).double()] * (3 - last + first)
        yield {"image": torch.stack(rows), "valid": torch.arange(first, first + 3) < last}


def measured(spans, *, over_ranks):
    pictures = valid_pictures(batches(spans))
    return dataclasses.asdict(latent_statistics(autoencoder(), pictures, over_ranks=over_ranks))


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    found = [measured(shares[rank], over_ranks=True) for shares in (UNEVEN, ONE_HAS_NONE)]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_measure_what_one_does(tmp_path):
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    alone = measured([(0, 3), (3, 6), (6, 9)], over_ranks=False)
    assert (alone["count"], alone["smallest"], alone["largest"]) == (9, (8, 8), (8, 12))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert found[0] == found[1]
    for together in found[0]:
        for name, number in alone.items():
            if name in ("mean", "std", "covariance"):
                pair = (torch.tensor(x, dtype=torch.float64) for x in (together[name], number))
                torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12)
            else:
                assert together[name] == number, name
