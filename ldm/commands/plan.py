"""`ldm plan experiment=...`: what a recipe needs, before anything is bought or queued.

Parameters and floating-point operations are counted on the network itself (on the meta device);
memory is summed by part. Speed follows from a utilisation that you give: it is an assumption, and
printed as one.
"""

import argparse
from dataclasses import dataclass
from typing import Any

# Dense bf16 peak in TFLOP/s and memory in GB, of the vendor's data sheets.
GPUS = {
    "A100-40": (312.0, 40.0),
    "A100": (312.0, 80.0),
    "H100": (989.0, 80.0),
    "H200": (989.0, 141.0),
    "L40S": (362.0, 48.0),
    "4090": (165.0, 24.0),
}


@dataclass(frozen=True)
class Cost:
    """What one network costs. `forward` counts floating-point operations for one picture."""

    parameters: int
    forward: float

    def training(self) -> float:
        """Forward, and twice that for the backward pass."""
        return 3 * self.forward


@dataclass(frozen=True)
class Need:
    """A training of `steps` steps on `count` devices of `peak` TFLOP/s at a `utilisation`."""

    cost: Cost
    frozen: float  # operations a picture in networks that are only used
    global_batch: int
    steps: int
    count: int
    peak: float
    utilisation: float

    @property
    def pictures_per_second(self) -> float:
        """Over all devices."""
        return self.count * self.peak * 1e12 * self.utilisation / self.operations

    @property
    def operations(self) -> float:
        """A picture's, all networks together."""
        return self.cost.training() + self.frozen

    @property
    def hours(self) -> float:
        """From the first step to the last; validation and samples not counted."""
        return self.steps * self.global_batch / self.pictures_per_second / 3600

    def memory(self, shards: int = 1) -> dict[str, float]:
        """GiB a device, by part, without activations: AdamW's two moments, float32 throughout."""
        each = 4 * self.cost.parameters / shards / 2**30
        parts = ("weights", "average", "gradients", "optimizer")
        return dict(zip(parts, (each, each, each, 2 * each), strict=True))


def add_parser(subparsers: Any) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser("plan", help="parameters, memory, GPU-hours of a recipe")
    parser.add_argument("settings", nargs="+", help="as for train.py: experiment=... key=value")
    parser.add_argument("--gpu", default="H100", choices=sorted(GPUS))
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the peak, 0..1")
    parser.set_defaults(func=plan)


def plan(arguments: argparse.Namespace) -> int:
    """Compose, count, print."""
    from hydra import compose, initialize_config_dir

    from ldm.commands.errors import CONF

    if not 0 < arguments.utilisation <= 1 or arguments.devices < 1:
        raise ValueError(
            f"--utilisation={arguments.utilisation} --devices={arguments.devices}: a share of the "
            "peak in (0, 1] and at least one device; image peers reach 0.12 to 0.28"
        )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", arguments.settings)
    peak, memory = GPUS[arguments.gpu]
    cost = autoencoder_cost(config) if config.stage_name == "autoencoder" else None
    if config.stage_name == "diffusion":
        cost = backbone_cost(config)
    if cost is None:
        raise ValueError("ldm plan knows the autoencoder and the diffusion stage; not this one")
    need = Need(
        cost,
        0.0,
        config.global_batch,
        config.trainer.max_steps,
        arguments.devices,
        peak,
        arguments.utilisation,
    )
    for line in lines(need, arguments.gpu, memory):
        print(line)
    return 0


def lines(need: Need, gpu: str, memory: float) -> list[str]:
    """What is printed."""
    whole, split = need.memory(), need.memory(need.count)
    parts = ", ".join(f"{name} {value:.2f}" for name, value in whole.items())
    return [
        f"  network  {need.cost.parameters / 1e6:.1f} M parameters, "
        f"{need.cost.forward / 1e9:.2f} GFLOP forward and {need.operations / 1e9:.2f} a picture "
        "trained (frozen networks not counted)",
        f"   memory  {sum(whole.values()):.2f} GiB a device with ddp ({parts}), "
        f"{sum(split.values()):.2f} with fsdp over {need.count}; activations come on top; "
        f"{gpu} has {memory:.0f} GB",
        f"    speed  {need.pictures_per_second:.0f} pictures/s, if {need.utilisation:.0%} of "
        f"{need.count} x {need.peak:.0f} TFLOP/s is reached (an assumption; measure yours)",
        f"     time  {need.steps} steps x {need.global_batch} pictures: "
        f"{need.hours / 24:.2f} days, {need.hours * need.count:.1f} GPU-hours",
    ]


def backbone_cost(config: Any) -> Cost:
    """The denoising network's, at the latents' and captions' sizes."""
    import torch
    from omegaconf import OmegaConf, open_dict

    from ldm.commands.building import build
    from ldm.types import Condition

    with open_dict(config):
        # Where the first stage does not exist yet, the size that the emoji autoencoder gives.
        config.latent.channels = config.latent.channels or 8
        config.latent.size = config.latent.size or config.image_size // 8
        config.text.width = OmegaConf.select(config, "text.width") or 512
        config.text.pooled_width = OmegaConf.select(config, "text.pooled_width") or 512
    with torch.device("meta"):
        network = build(config.backbone, "backbone")
        size, tokens = config.latent.size, 77
        condition = Condition(
            torch.zeros(1, tokens, config.text.width),
            torch.ones(1, tokens, dtype=torch.bool),
            torch.zeros(1, config.text.pooled_width),
        )
        x_t = torch.zeros(1, config.latent.channels, size, size)
        return count(network, lambda: network(x_t, torch.zeros(1), condition))


def autoencoder_cost(config: Any) -> Cost:
    """Encoder and decoder; the critic is not counted."""
    import torch

    from ldm.commands.building import build

    with torch.device("meta"):
        network = build(config.autoencoder, "autoencoder")
        image = torch.zeros(1, 3, config.image_size, config.image_size)
        return count(network, lambda: network.decode(network.encode(image).mean))


def count(network: Any, call: Any) -> Cost:
    """Parameters, and the operations of matrix products, convolutions and attention in a call."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call()
    return Cost(sum(p.numel() for p in network.parameters()), float(counter.get_total_flops()))
