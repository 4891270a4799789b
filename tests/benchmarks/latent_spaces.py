"""Which latents are good to diffuse in: first stages trained alike, and a diffusion on each.

    OMP_NUM_THREADS=1 python tests/benchmarks/latent_spaces.py ../spaces --steps 900 1500

Every first stage trains on the emoji for as many steps of the same pictures; then the same small
U-Net trains on the latents of each, from the same noise. Prints a table of reconstruction
(all validation pictures) against generation (a picture for each validation caption). A run that is
there is not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FIRST = ["experiment=emoji/autoencoder", "loss=l1", "critic=none"]
SECOND = ["experiment=emoji/diffusion", "backbone.channels=[64,128]", "data=latents"]
EQUIVARIANCE = "module.equivariance={_target_: ldm.models.Equivariance}"
ALIGNMENT = (
    "module.alignment={_target_: ldm.models.Alignment, latent_channels: 8, width: 128, "
    "adaptive: false, features: "
    "{_target_: ldm.frozen.clip.ClipMaps, folder: 'asset:emoji_clip', layers: [2]}}"
)
SPACES = {
    "kl": ["autoencoder=emoji"],
    "vq": ["autoencoder=emoji_vq"],
    "fsq": ["autoencoder=emoji_fsq"],
    "kl + equivariance": ["autoencoder=emoji", EQUIVARIANCE],
    "kl + alignment": ["autoencoder=emoji", ALIGNMENT],
    "kl + balanced alignment": ["autoencoder=emoji", ALIGNMENT.replace("false", "true")],
}
COLUMNS = {
    "PSNR, dB": ("first", "val/psnr"),
    "FD of reconstructions": ("first", "reconstruction/fd_clip"),
    "high frequencies": ("first", "val/latent/high_frequencies"),
    "FD of samples": ("second", "fd_clip"),
    "CLIP score": ("second", "clip_score"),
}


def train(settings: list[str], place: Path, name: str, steps: int) -> Path:
    """The run's folder."""
    run = place / name
    state = run / "state.json"
    if not state.is_file() or json.loads(state.read_text())["state"] != "finished":
        where = [f"run_root={place}", f"name={name}", f"trainer.max_steps={steps}"]
        command = [sys.executable, "train.py", *settings, *where, f"evaluation.every={steps}"]
        subprocess.run(command, cwd=ROOT, check=True)
    return run


def ldm(*words: object) -> None:
    """One command."""
    command = [sys.executable, "-m", "ldm.commands", *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True)


def measured(place: Path, space: str, settings: list[str], steps: list[int]) -> dict[str, Any]:
    """All numbers of one kind of latents."""
    name = space.replace(" + ", "-").replace(" ", "-")
    first = train([*FIRST, *settings], place, f"{name}-first", steps[0])
    latents = place / f"{name}-latents"
    ldm("encode", first, latents)
    here = [f"first_stage={first}", f"data.folder={latents}"]
    second = train([*SECOND, *here], place, f"{name}-second", steps[1])
    judged = ["--metrics", "fd_clip,clip_score", "--samples", 152, "--passes", 20]
    ldm("evaluate", second, *judged, "--guidance", 2)
    (row,) = json.loads((second / "evaluation" / "results.json").read_text())
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    return {"first": {k: v for line in lines for k, v in line.items()}, "second": row["values"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--steps", type=int, nargs=2, default=[900, 1500])
    options = parser.parse_args()
    place = options.place.resolve()
    rows = {s: measured(place, s, how, options.steps) for s, how in SPACES.items()}
    print(f"| latents | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}")
    for space, row in rows.items():
        numbers = [row[stage].get(key) for stage, key in COLUMNS.values()]
        print(f"| {space} | {' | '.join('' if x is None else f'{x:.4g}' for x in numbers)} |")


if __name__ == "__main__":
    main()
