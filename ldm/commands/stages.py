"""`ldm stages`: pictures that show what the two stages of a run do."""

import argparse
from pathlib import Path
from typing import Any

from ldm.commands.options import refuse_below

SHOWN = 8  # places along the way


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("stages", help="pictures of what both stages of a run do")
    parser.add_argument("run", help="a diffusion run, or one of its checkpoints")
    parser.add_argument("--prompt", help="what is drawn (default: the run's first grid prompt)")
    parser.add_argument("--picture", help="what is compressed (default: the first of data.val)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=2, help="pixels a pixel (default: 2)")
    parser.add_argument("--out", metavar="DIR", default="out", help="where PNGs go (default: out)")
    parser.add_argument("--first-stage", help="another place of the run's first stage")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write compression.png, forward.png and denoising.png."""
    refuse_below(arguments, 1, "scale")

    from PIL import Image as Pictures

    from ldm.commands.trained import load_diffusion
    from ldm.generate import save_png

    trained = load_diffusion(arguments.run, arguments.first_stage)
    prompts = trained.config.evaluation.get("grid_prompts") or [""]
    prompt = arguments.prompt if arguments.prompt is not None else prompts[0]
    picture = _picture(arguments.picture, trained.config)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    told = {"checkpoint": f"{trained.folder.path.name}/{trained.checkpoint.path.name}"}
    for name, sheet in (
        ("compression", compression(trained.codec, picture)),
        ("forward", forward(trained, picture, arguments.seed)),
        ("denoising", denoising(trained, prompt, arguments.seed)),
    ):
        size = (sheet.width * arguments.scale, sheet.height * arguments.scale)
        texts = {**told, "prompt": prompt, "seed": arguments.seed}
        save_png(sheet.resize(size, Pictures.Resampling.NEAREST), out / f"{name}.png", texts)
        print(out / f"{name}.png")
    return 0


def compression(codec: Any, picture: Any) -> Any:
    """The picture, each channel of its latent (grey: -2 to 2 deviations), what is made of the
    latent, and the difference four times enlarged."""
    from torch.nn.functional import interpolate

    from ldm.generate import grid

    latent = codec.encode(picture)
    made = codec.decode(latent).clamp(-1, 1)
    wide = interpolate(latent / 2, picture.shape[-2:])[0]  # nearest: a cell stays a square
    channels = [channel.expand(3, *channel.shape) for channel in wide]
    difference = 4 * (picture - made).abs()[0] - 1
    shown = [picture[0], *channels, made[0], difference]
    return grid(shown, len(shown))


def forward(trained: Any, picture: Any, seed: int) -> Any:
    """x_t of the picture at times 0 to 1, decoded: what training begins from."""
    import torch

    from ldm.generate import grid
    from ldm.types import draws_for_seeds

    latent = trained.codec.encode(picture)
    noise = draws_for_seeds([seed], latent.device).normal(latent.shape[1:], "forward")
    times = torch.linspace(0, 1, SHOWN, dtype=torch.float64)
    alpha, sigma = trained.denoiser.schedule(times)
    noisy = [a * latent + s * noise for a, s in zip(alpha.float(), sigma.float(), strict=True)]
    return grid([trained.codec.decode(x)[0] for x in noisy], SHOWN)


def denoising(trained: Any, prompt: str, seed: int) -> Any:
    """Above, x_t along the way of the sampler, decoded; below, the estimate of the picture that
    the network makes of it; the last is what comes out."""
    import torch

    from ldm.commands.building import build
    from ldm.commands.parts import autocast_dtype
    from ldm.generate import TextToImage, grid

    config, codec = trained.config, trained.codec
    generate = TextToImage(
        trained.denoiser,
        build(config.sampler, "sampler"),
        codec,
        trained.captions,
        config.image_size,
        config.evaluation.guidance,
        autocast_dtype(config.precision),
    )
    seen: list[tuple[Any, Any]] = []
    made = generate([prompt], [seed], watch=lambda x, t, estimate: seen.append((x, estimate.x0)))
    last = len(seen) - 1
    chosen = [seen[round(i * last / (SHOWN - 2))] for i in range(SHOWN - 1)]
    with torch.no_grad():
        noisy = [codec.decode(x)[0] for x, _ in chosen]
        estimates = [codec.decode(x0)[0] for _, x0 in chosen]
    return grid([*noisy, made[0], *estimates, made[0]], SHOWN)


def _picture(name: str | None, config: Any) -> Any:
    import numpy as np

    from ldm.commands.building import build
    from ldm.commands.reconstruct import read_picture
    from ldm.data import normalise
    from ldm.data.order import Rows

    if name is not None:
        return read_picture(Path(name), config.image_size)
    first = np.zeros(1, np.int64)
    batch, _ = build(config.data.val, "data.val").read(Rows(first, first, 0))
    return normalise(batch["image"])
