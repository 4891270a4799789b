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
        """A picture's, in the network that is trained."""
        return self.cost.training()

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
    from ldm.commands.check import checked
    from ldm.commands.composing import composed
    from ldm.commands.fitting import fit

    if not 0 < arguments.utilisation <= 1 or arguments.devices < 1:
        raise ValueError(
            f"--utilisation={arguments.utilisation} --devices={arguments.devices}: a share of the "
            "peak in (0, 1] and at least one device; image peers reach 0.12 to 0.28"
        )
    config = composed(arguments.settings)
    _stand_in(config)
    checked(config)
    peak, memory = GPUS[arguments.gpu]
    captions = None
    if config.stage_name == "diffusion":
        captions = with_sizes(config)
        fit(config)
    cost = training_cost(config, captions)
    if cost is None:
        raise ValueError(
            f"stage={config.stage_name} has no plan; name an experiment of the autoencoder or the "
            "diffusion stage"
        )
    need = Need(
        cost,
        config.global_batch,
        config.trainer.max_steps,
        arguments.devices,
        peak,
        arguments.utilisation,
    )
    for line in lines(need, arguments.gpu, memory):
        print(line)
    return 0


def _stand_in(config: Any) -> None:
    """Something where pictures, a first stage or frozen weights are named: a plan opens none."""
    from omegaconf import OmegaConf

    for node, key in ((config.data, "folder"), (config, "first_stage")):  # others are made of these
        if OmegaConf.is_missing(node, key):
            node[key] = "NOT_NAMED"
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "NOT_NAMED")


def peak_of(device: str) -> float | None:
    """TFLOP/s of a GPU by what its driver calls it ("NVIDIA H100 80GB HBM3"); None for others."""
    words = device.replace("-", " ").split()
    return next((peak for name, (peak, _) in GPUS.items() if name in words), None)


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


def training_cost(config: Any, captions: Any = None) -> Cost | None:
    """The trained network's, for the stages that have a plan. The diffusion stage needs a caption
    encoder, whose widths must stand in `config` as the latents' must."""
    if config.stage_name == "autoencoder":
        return autoencoder_cost(config)
    return backbone_cost(config, captions) if config.stage_name == "diffusion" else None


def with_sizes(config: Any) -> Any:
    """The caption encoder, and its widths and the latents' in `config`."""
    from omegaconf import open_dict

    from ldm.commands.text import text_encoder

    try:
        captions: Any = text_encoder(config)
    except FileNotFoundError as error:
        if config.text.width is None:
            raise FileNotFoundError(
                f"{error}; a plan does with its widths: set text.width=768 text.pooled_width=0, say"
            ) from None
        captions = _Silent(config.text.width, config.text.pooled_width or 0)
    with open_dict(config):
        config.latent = dict(zip(("channels", "size"), latent_shape(config), strict=True))
        config.text.width, config.text.pooled_width = captions.width, captions.pooled_width
    return captions


@dataclass(frozen=True)
class _Silent:
    """Stands for a text encoder that is not there: 77 tokens that say nothing."""

    width: int
    pooled_width: int

    def __call__(self, captions: list[str]) -> Any:
        import torch

        from ldm.types import Condition

        pooled = torch.zeros(1, self.pooled_width) if self.pooled_width else None
        mask = torch.ones(1, 77, dtype=torch.bool)
        return Condition(torch.zeros(1, 77, self.width), mask, pooled)


def backbone_cost(config: Any, captions: Any) -> Cost:
    """The denoising network's, at the sizes that the first stage and the text encoder give."""
    from dataclasses import replace

    import torch

    from ldm.commands.building import build

    condition = captions([""])  # which every encoder reads, one of classes too
    pooled = condition.pooled
    meta = replace(
        condition,
        tokens=condition.tokens.to("meta"),
        mask=condition.mask.to("meta"),
        pooled=None if pooled is None else pooled.to("meta"),
    )
    with torch.device("meta"):
        network = build(config.backbone, "backbone")
        x_t = torch.zeros(1, config.latent.channels, config.latent.size, config.latent.size)
        return count(network, lambda: network(x_t, torch.zeros(1), meta))


def latent_shape(config: Any) -> tuple[int, int]:
    """Channels and size: of the first stage where it is trained, else as the settings say."""
    from ldm.commands.first_stage import LATENTS, first_stage_at, load_codec

    if (first_stage_at(config.first_stage) / LATENTS).is_file():
        channels, size, _ = load_codec(config.first_stage).latent_shape(config.image_size)
        return channels, size
    if config.latent.channels is None or config.latent.size is None:
        raise ValueError(
            f"first_stage={config.first_stage} is not trained yet, so its latents are not known; "
            "set latent.channels=8 latent.size=8, say, or train it first"
        )
    return config.latent.channels, config.latent.size


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

    network.eval()  # a codebook in training looks at numbers, and here there are none
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call()
    return Cost(sum(p.numel() for p in network.parameters()), float(counter.get_total_flops()))
