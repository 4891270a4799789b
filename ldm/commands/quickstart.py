"""`ldm quickstart`: both stages and samples on this machine, with the commands that it runs."""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from ldm.commands.child import ended
from ldm.commands.options import refuse_below
from ldm.runs.signals import RETRY

ROOT = Path(__file__).parents[2]
PROMPTS = (
    "red apple",
    "red heart",
    "grinning face with big eyes",
    "firefighter dark skin tone",
    "cook medium-light skin tone",
    "woman astronaut medium skin tone",
    "thumbs up light skin tone",
    "bicycle",
)


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser(
        "quickstart",
        help="train both stages on shipped pictures, then sample: about 12 minutes",
    )
    parser.add_argument("--run-root", default="runs", help="where runs go (default: runs)")
    parser.add_argument("--autoencoder-steps", type=int, default=600, metavar="N")
    parser.add_argument("--diffusion-steps", type=int, default=2400, metavar="N")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), metavar="N", help="to draw")
    parser.add_argument(
        "override", nargs="*", help="key=value for both trainings, such as global_batch=32"
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the real commands one after the other; stop at the first that fails."""
    if not (ROOT / "train.py").is_file():
        raise FileNotFoundError(
            "train.py and conf/ are not beside the installed package; install from a clone with "
            "`pip install -e .`"
        )
    refuse_below(arguments, 1, "autoencoder_steps", "diffusion_steps", "prompts")
    root = Path(arguments.run_root)
    began = time.monotonic()
    for command in commands(arguments):
        print(f"\n$ {shlex.join(command)}", flush=True)
        runs = [sys.executable, *command[1:]]
        if command[0] == "ldm":
            runs = [sys.executable, "-m", "ldm.commands", *command[1:]]
        code, asked = ended(runs)
        if code or asked:
            return code or RETRY
    minutes = (time.monotonic() - began) / 60
    diffusion = root / "quickstart-diffusion"
    print(
        f"\nDone in {minutes:.1f} minutes.\n"
        f"   grid     {root / 'quickstart-samples' / 'grid.png'}\n"
        f"   metrics  {diffusion / 'metrics.jsonl'}\n"
        f"   watch    tensorboard --logdir {root}\n"
        f'   next     ldm sample {diffusion} "woman astronaut medium skin tone" --out out\n'
        "            your own pictures: ldm shards make FOLDER my-shards"
    )
    return 0


def commands(arguments: argparse.Namespace) -> list[list[str]]:
    """Exactly what a person would type."""
    root = Path(arguments.run_root)
    first, latents = root / "quickstart-autoencoder", root / "quickstart-latents"
    train = ["python", str(_shown(ROOT / "train.py"))]
    shared = [f"run_root={root}"] if arguments.run_root != "runs" else []
    shared += arguments.override
    stage_one = (
        f"experiment=emoji/autoencoder name={first.name} loss=l1 critic=none "
        f"trainer.max_steps={arguments.autoencoder_steps} "
        f"evaluation.every={_evaluate(arguments.autoencoder_steps)}"
    )
    stage_two = (
        f"experiment=emoji/diffusion name=quickstart-diffusion first_stage={first} "
        f"data=latents data.folder={latents} trainer.max_steps={arguments.diffusion_steps} "
        f"evaluation.every={_evaluate(arguments.diffusion_steps)}"
    )
    sample = ["ldm", "sample", str(root / "quickstart-diffusion"), *PROMPTS[: arguments.prompts]]
    return [
        [*train, *stage_one.split(), *shared],
        ["ldm", "encode", str(first), str(latents)],
        [*train, *stage_two.split(), *shared],
        [*sample, "--out", str(root / "quickstart-samples")],
    ]


def _evaluate(steps: int) -> int:
    """Look at the model half-way and at the end."""
    return max(1, -(-steps // 2))


def _shown(path: Path) -> Path:
    """Relative where that is shorter to read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
