"""A training on two ranks whose process group waits 10 seconds, and whose evaluation takes longer
on one of them and fails there in part; run as a program: ROOT NAME STRATEGY watched|unwatched."""

import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from run_in_process import run
from tiny import SECOND
from torch import distributed
from torch.distributed import distributed_c10d

from ldm.commands.parts import DiffusionStage
from ldm.metrics import CLIPScore, Retrieval

TIMEOUT = 10


def impatient(strategy):
    """From where the ranks have met; starting them takes longer on a busy machine."""
    ordinary = strategy.setup

    def setup(self, trainer):
        ordinary(self, trainer)
        distributed_c10d._set_pg_timeout(timedelta(seconds=TIMEOUT), distributed.group.WORLD)

    strategy.setup = setup


def late(self, images, captions, ordinary=CLIPScore.add):
    if distributed.get_rank() == 1:
        time.sleep(1.4 * TIMEOUT)
    ordinary(self, images, captions)


def broken(self, images, captions, ordinary=Retrieval.add):
    if distributed.get_rank() == 1:
        raise RuntimeError("broken on rank 1")
    ordinary(self, images, captions)


def main(root, name, strategy, watched):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    impatient(DDPStrategy)
    impatient(ModelParallelStrategy)
    CLIPScore.add, Retrieval.add = late, broken
    if watched == "unwatched":
        DiffusionStage.callbacks = lambda *_: []
    settings = SECOND.replace("trainer=cpu", f"trainer={strategy} trainer.accelerator=cpu")
    settings += f" trainer.devices=2 first_stage={root}/first evaluation.prompts=3"
    return run(Path(root), name, settings)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
