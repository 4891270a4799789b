"""`ldm explain`: what noise does to one picture, step by step, and what the network makes of it."""

import argparse
import math
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("explain", help="the forward chain of one picture, with its SNR")
    parser.add_argument("run", help="a diffusion run, or one of its checkpoints")
    parser.add_argument("--image", metavar="FILE", required=True, help="the picture")
    parser.add_argument("--prompt", default="", help="what the network is told (default: nothing)")
    parser.add_argument("--steps", type=int, default=9, help="stops from t = 0 to 1 (default: 9)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", metavar="DIR", default="out", help="where PNGs go (default: out)")
    parser.add_argument("--first-stage", help="another place of the run's first stage")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a line a step; write `chain.png` (x_t above the network's estimate of the picture) and
    `snr.png` (signal and noise by time)."""
    if arguments.steps < 2:
        raise ValueError(f"--steps {arguments.steps}: a chain has two ends; give 2 or more")

    from ldm.commands.reconstruct import read_picture
    from ldm.commands.trained import load_diffusion

    trained = load_diffusion(arguments.run, arguments.first_stage)
    image = read_picture(Path(arguments.image), trained.config.image_size)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    _chain(trained, image, arguments, out / "chain.png")
    _curve(trained.denoiser.schedule, arguments.steps, out / "snr.png")
    print(f"chain.png and snr.png in {out}")
    return 0


def _chain(trained: Any, image: Any, arguments: argparse.Namespace, path: Path) -> None:
    import torch

    from ldm.commands.trajectory import strip
    from ldm.diffusion import corrupt, log_snr
    from ldm.generate import save_png
    from ldm.types import draws_for_seeds

    denoiser, codec, count = trained.denoiser, trained.codec, arguments.steps
    times = torch.linspace(0, 1, count, dtype=torch.float64)
    latent = codec.encode(image).expand(count, -1, -1, -1)
    draws = draws_for_seeds([arguments.seed] * count, latent.device)
    noise = draws.normal(latent.shape[1:], "start")
    x_t = corrupt(denoiser.schedule, latent, noise, times.float())
    asked = times.clamp(min=1e-3)  # at t = 0 there is no noise to be told from the picture
    with torch.no_grad():
        estimate = denoiser(x_t, asked, trained.captions([arguments.prompt] * count)).x0
    alphas, sigmas = (part.tolist() for part in denoiser.schedule(times))
    ratios = [math.exp(x) for x in log_snr(denoiser.schedule, times).tolist()]
    rows = zip(times.tolist(), alphas, sigmas, ratios, strict=True)
    words = []
    for t, alpha, sigma, ratio in rows:
        print(f"t {t:.3f}  alpha {alpha:.4f}  sigma {sigma:.4f}  SNR {told(ratio)}")
        words.append(f"t = {t:.3f}\nSNR {told(ratio)}")
    pictures = [list(pair) for pair in zip(codec.decode(x_t), codec.decode(estimate), strict=True)]
    picture = strip(list(zip(words, pictures, strict=True)))
    texts = {"image": arguments.image, "prompt": arguments.prompt, "seed": arguments.seed}
    save_png(picture, path, {**texts, "times": times.tolist(), "snr": [told(r) for r in ratios]})


def _curve(schedule: Any, steps: int, path: Path) -> None:
    import torch
    from matplotlib.figure import Figure

    from ldm.diffusion import log_snr

    times = torch.linspace(0, 1, 201, dtype=torch.float64)
    stops = torch.linspace(0, 1, steps, dtype=torch.float64)[1:-1]
    alpha, sigma = schedule(times)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(times, alpha, label="alpha, of the picture")
    left.plot(times, sigma, label="sigma, of the noise")
    left.set(title="x_t = alpha x_0 + sigma noise", xlabel="t")
    left.legend()
    decibel = 10 / math.log(10)
    inner = slice(2, -2)  # at its ends a ratio may be infinite
    right.plot(times[inner], log_snr(schedule, times)[inner] * decibel)
    right.plot(stops, log_snr(schedule, stops) * decibel, "o", markersize=4)
    right.set(title="signal-to-noise ratio, decibel", xlabel="t")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def told(ratio: float) -> str:
    """A ratio in three digits; `inf` where there is no noise."""
    return f"{ratio:.3g}"
