"""A training on one rank or two, whose weights rank 0 writes to a file; run as a program: two."""

import sys
from functools import partial

import torch
from autoencoder_runs import Pictures, pictures, trainer

from ldm.models import (
    L1,
    CriticLoss,
    Hinge,
    PatchCritic,
    QuantisedAutoencoder,
    ReconstructionLoss,
    VectorQuantizer,
)
from ldm.training.autoencoder import AutoencoderModule
from ldm.training.optim import warmup_constant


def train_on_ranks(ranks: int, path: str) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 2, revive_below=0.0)
    quantizer.updates += 1  # no revival: which rank's vector an entry takes depends on the ranks
    quantizer.counts.fill_(4.0)
    module = AutoencoderModule(
        QuantisedAutoencoder(quantizer, width=8, multipliers=(1, 2), blocks=1, groups=4),
        ReconstructionLoss(L1()),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        lr_schedule=warmup_constant,
        critic=CriticLoss(
            PatchCritic(width=8, layers=2, groups=4), Hinge(), start=2, ramp=2, lecam=0.1
        ),
    )
    settings = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    fit = trainer(5, precision="64-true", **settings)
    fit.fit(module, Pictures(pictures(8, 16, dtype=torch.float64), 4))
    if fit.is_global_zero:
        torch.save(module.state_dict(), path)


if __name__ == "__main__":
    train_on_ranks(2, sys.argv[1])
