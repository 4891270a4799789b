"""How ranks share a training: whole copies (DDP), or weights, gradients, averages and optimizer
states in parts, one a rank (FSDP2)."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor


class Replicated(DDPStrategy):
    """A copy on each rank, gradients averaged while the backward pass goes on.

    `compress` sends them in bf16 (on GPUs only; sums are then less exact). `static_graph` promises
    that every step uses the same weights. `minutes` is how long a collective may take before the
    job is given up.
    """

    def __init__(
        self, *, compress: bool = False, static_graph: bool = False, minutes: float = 10.0
    ) -> None:
        super().__init__(
            gradient_as_bucket_view=True,
            static_graph=static_graph,
            ddp_comm_hook=bf16_compress_hook if compress else None,
            timeout=timedelta(minutes=minutes),
        )


class FullySharded(ModelParallelStrategy):
    """Each block of each network is gathered when it is used, and its gradients are summed over
    the ranks in float32. Networks without blocks (autoencoder, critic) are gathered together for
    a step: that splits what optimizer, gradients and averages take, not what the step takes.

    A network's average is split exactly as the network is, so that it follows without
    communication. With `hybrid`, ranks of a node share one copy and nodes hold copies, which keeps
    the gathering off the slower network between nodes. With `gather_bf16` weights travel and
    compute in bf16, while the parts that the optimizer and the average change stay float32
    (`precision=bf16-true`). `minutes` is how long a collective may take before the job is given up.
    """

    def __init__(
        self, *, hybrid: bool = False, gather_bf16: bool = False, minutes: float = 10.0
    ) -> None:
        super().__init__(
            data_parallel_size=1, tensor_parallel_size=1, timeout=timedelta(minutes=minutes)
        )
        self.hybrid, self.gather_bf16 = hybrid, gather_bf16

    def setup_environment(self) -> None:
        """The ranks in Lightning's own terms: all of them see different data."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, module: L.LightningModule, steps: Sequence[str]) -> None:
        """Split every network by its blocks. Where one has none, the module is split as a whole,
        and gathered as a whole in the methods named by `steps`."""
        networks = {
            name: child
            for name, child in module.named_children()
            if any(True for _ in child.parameters())
        }
        for name, parameter in module.named_parameters():
            if parameter.ndim == 0:
                raise ValueError(
                    f"trainer=fsdp cannot split `{name}`, which is one number; set trainer=ddp for "
                    "this stage"
                )
        settings: dict[str, Any] = {"mesh": self._mesh(), "mp_policy": self._precision()}
        module.to(self.root_device)
        if all(blocks_of(network) for network in networks.values()):
            for network in networks.values():
                for block in blocks_of(network):
                    fully_shard(block, **settings)
                fully_shard(network, **settings)
            return
        # Gathered anew for the backward pass: between two steps nothing may be whole.
        fully_shard(module, **settings, reshard_after_forward=True)
        for step in steps:
            register_fsdp_forward_method(module, step)

    def _mesh(self) -> DeviceMesh:
        kind = self.root_device.type
        if self.hybrid:
            shape = (self.num_nodes, self.num_processes)
            return init_device_mesh(kind, shape, mesh_dim_names=("copies", "parts"))
        return init_device_mesh(kind, (self.world_size,), mesh_dim_names=("parts",))

    def _precision(self) -> MixedPrecisionPolicy:
        """Autocast chooses what is computed in bf16, and inputs such as times stay exact; so do
        sums over ranks."""
        return MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.gather_bf16 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The units of a network that names them (`ldm.types.Network`), else none."""
    found = dict(network.named_children()).get("blocks")
    return list(found) if isinstance(found, nn.ModuleList) else []


def whole(value: Tensor) -> Tensor:
    """A tensor that was summed over parts, as every rank's own."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def laid_out(value: Tensor, pattern: Tensor) -> Tensor:
    """What every rank holds whole, on the device of `pattern`, and in parts where that is."""
    if not isinstance(pattern, DTensor) or isinstance(value, DTensor):
        return value.to(pattern.device)
    there = value.to(pattern.device)
    return distribute_tensor(there, pattern.device_mesh, pattern.placements, src_data_rank=None)
