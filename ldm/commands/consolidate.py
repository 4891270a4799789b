"""`ldm consolidate RUN`: the weights of a checkpoint, sharded or not, as one safetensors file."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Declare the verb."""
    parser = subparsers.add_parser("consolidate", help="a checkpoint's weights as one file")
    parser.add_argument("checkpoint", help="a run folder (its newest), or a checkpoint's folder")
    parser.add_argument("--out", help="default: RUN/weights-STEP.safetensors")
    parser.add_argument(
        "--weights",
        choices=("average", "network", "all"),
        default="average",
        help="the averaged network (default), the trained one, or everything by its full name",
    )
    parser.set_defaults(func=consolidate)


def consolidate(arguments: argparse.Namespace) -> int:
    """Write the file, and say what is in it."""
    from ldm.runs.checkpoints import checkpoints
    from ldm.tensor_files import write_tensors

    given = Path(arguments.checkpoint).resolve()
    run = (given / "checkpoints").is_dir()
    found = [
        checkpoint
        for checkpoint in checkpoints(given / "checkpoints" if run else given.parent)
        if run or checkpoint.path == given
    ]
    if not found:
        raise FileNotFoundError(
            f"{arguments.checkpoint}: neither a run with a checkpoint nor a checkpoint; name "
            "RUN, or RUN/checkpoints/step-00001000"
        )
    checkpoint = found[-1]
    if damage := checkpoint.damage():
        raise ValueError(f"{checkpoint.path}: {damage}; name another checkpoint")
    tensors = checkpoint.load()["state_dict"]
    if arguments.weights != "all":
        start = f"{arguments.weights}."
        tensors = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    if not tensors:
        raise ValueError(
            f"--weights={arguments.weights}: {checkpoint.path} has none; set --weights=all"
        )
    home = checkpoint.path.parents[1]
    out = Path(arguments.out or home / f"weights-{checkpoint.step:08d}.safetensors")
    meta = {"run": home.name, "step": str(checkpoint.step), "weights": arguments.weights}
    write_tensors(out, {name: tensor.clone() for name, tensor in tensors.items()}, meta)
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"wrote  {out}: {len(tensors)} tensors, {count / 1e6:.2f} M numbers")
    return 0
