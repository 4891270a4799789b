"""What is done to a network block by block: activation checkpointing and regional compile."""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from ldm.types import Network


def checkpoint_blocks(network: Network) -> None:
    """From now on every block of the network keeps only its inputs for the backward pass and is
    computed again there. Parameters and their names stay; call it before compiling blocks."""
    for block in network.blocks:
        # No block draws random numbers, so there is no generator state to bring back.
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def compile_blocks(network: Network, backend: str = "inductor") -> None:
    """Compile each block by itself, which takes seconds where the whole network takes minutes.

    Blocks of one kind share what is compiled where their shapes agree. Those of a U-Net differ in
    width from level to level, more often than torch recompiles a function before it gives up.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * len(network.blocks))
    for block in network.blocks:
        block.compile(fullgraph=True, backend=backend)
