"""`ldm sample`: prompts in, PNGs out."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("sample", help="pictures for prompts, from a trained run")
    parser.add_argument("run", help="the folder of a diffusion run, such as runs/emoji-diffusion")
    parser.add_argument("prompt", nargs="*", help="one picture each")
    parser.add_argument("--prompts", metavar="FILE", help="a text file with one prompt a line")
    parser.add_argument("--out", metavar="DIR", default="out", help="where PNGs go (default: out)")
    parser.add_argument("--steps", type=int, help="solver steps (default: the run's)")
    parser.add_argument("--sampler", help="ddim, euler, heun, … (default: the run's)")
    parser.add_argument("--guidance", type=float, help="1 is none (default: the run's)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; then +1 each")
    parser.add_argument("--negative", default="", help="what guidance leads away from")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--first-stage", help="another place of the run's first stage")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write `000000.png` … and `grid.png`."""
    prompts = _prompts(arguments)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size {arguments.batch_size}: must be 1 or more")

    import torch

    from ldm.commands.parts import load_diffusion
    from ldm.generate import grid, save_png, to_picture

    trained = load_diffusion(arguments.run, arguments.first_stage)
    generate, settings = text_to_image(trained, arguments)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    seeds = [arguments.seed + i for i in range(len(prompts))]
    images: list[torch.Tensor] = []
    for batch in generate.batches(prompts, seeds, arguments.batch_size, arguments.negative):
        for image in batch:
            number = len(images)
            texts = {"prompt": prompts[number], "seed": seeds[number], **settings}
            save_png(to_picture(image), out / f"{number:06d}.png", texts)
            images.append(image)
    sheet = grid(images, min(8, len(images)))
    save_png(sheet, out / "grid.png", {"prompts": prompts, "seeds": seeds, **settings})
    print(f"{len(images)} pictures and grid.png in {out}")
    return 0


def text_to_image(trained: Any, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The generator that the options ask for, and the settings as they go into each PNG."""
    import torch
    from omegaconf import OmegaConf

    from ldm.commands.building import build
    from ldm.commands.choices import sampler_node
    from ldm.commands.parts import autocast_dtype
    from ldm.generate import TextToImage

    config = trained.config
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    sampler = sampler_node(config.sampler, arguments.sampler, arguments.steps)
    guidance = config.evaluation.guidance if arguments.guidance is None else arguments.guidance
    trained.denoiser.network.to(device)
    trained.codec.to(device)
    trained.captions.to(device)
    generate = TextToImage(
        trained.denoiser,
        build(sampler, "sampler"),
        trained.codec,
        trained.captions,
        config.image_size,
        guidance,
        autocast_dtype(config.precision),
    )
    settings = {
        "negative": arguments.negative,
        "checkpoint": f"{trained.folder.path.name}/{trained.checkpoint.path.name}",
        "sampler": OmegaConf.to_container(sampler),
        "guidance": guidance,
        "config": OmegaConf.to_yaml(config),
    }
    return generate, settings


def _prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = list(arguments.prompt)
    if arguments.prompts is not None:
        lines = Path(arguments.prompts).read_text(encoding="utf-8").splitlines()
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError('no prompt: write ldm sample RUN "a prompt", or --prompts FILE')
    return prompts
