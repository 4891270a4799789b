"""Activation checkpointing: memory for time, block by block."""

from functools import partial

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
