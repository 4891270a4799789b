"""`ldm sample`: prompts in, PNGs out."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.commands.options import add_options
from ldm.commands.tiles import add_tile_options, tiled


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("sample", help="pictures for prompts, from a trained run")
    parser.add_argument("run", help="a diffusion run such as runs/emoji-diffusion, or a checkpoint")
    parser.add_argument("prompt", nargs="*", help="one picture each")
    parser.add_argument("--prompts", metavar="FILE", help="a text file with one prompt a line")
    parser.add_argument("--out", metavar="DIR", default="out", help="where PNGs go (default: out)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; then +1 each")
    parser.add_argument("--negative", default="", help="what guidance leads away from")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--init-image", metavar="FILE", help="begin from this picture")
    parser.add_argument(
        "--strength",
        type=float,
        help="how much of it may change, 0 to 1 (default 0.6; 1 with a mask or to enlarge)",
    )
    parser.add_argument(
        "--mask", metavar="FILE", help="of the picture's size: white is painted anew, black is kept"
    )
    add_tile_options(parser)
    parser.add_argument(
        "--trajectory", action="store_true", help="also a strip and a GIF of each denoising"
    )
    add_options(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write `000000.png` … and `grid.png`; with --trajectory `000000-trajectory.png` and `.gif`."""
    prompts = _prompts(arguments)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size {arguments.batch_size}: must be 1 or more")
    _check_source(arguments)

    import torch

    from ldm.commands.drawing import text_to_image
    from ldm.commands.trained import load_diffusion
    from ldm.commands.trajectory import Trajectory, save_trajectory
    from ldm.generate import grid, save_png, to_picture

    trained = load_diffusion(arguments.run, arguments.first_stage)
    trained = replace(trained, codec=tiled(trained.codec, arguments))
    generate, settings = text_to_image(trained, arguments)
    source = _source(arguments, trained.config.image_size, generate.beside)
    if source is not None:
        settings |= {"init_image": arguments.init_image, "strength": source.strength}
        settings |= {} if arguments.mask is None else {"mask": arguments.mask}
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    seeds = [arguments.seed + i for i in range(len(prompts))]
    start = _first_free(out)
    images: list[torch.Tensor] = []
    for first in range(0, len(prompts), arguments.batch_size):
        part = slice(first, first + arguments.batch_size)
        watch = Trajectory() if arguments.trajectory else None
        batch = generate(prompts[part], seeds[part], arguments.negative, source=source, watch=watch)
        for row, image in enumerate(batch):
            index = len(images)
            number = start + index
            texts = {"prompt": prompts[index], "seed": seeds[index], **settings}
            save_png(to_picture(image), out / f"{number:06d}.png", texts)
            if watch is not None:
                path = out / f"{number:06d}-trajectory"
                save_trajectory(watch.of(row, trained.codec), image, path, texts)
            images.append(image)
    sheet = grid(images, min(8, len(images)))
    name = f"grid-{start:06d}.png" if (out / "grid.png").exists() else "grid.png"
    save_png(sheet, out / name, {"prompts": prompts, "seeds": seeds, **settings})
    after = f", from {start:06d}.png on, after those that were there" if start else ""
    print(f"{len(images)} pictures and {name} in {out}{after}")
    return 0


def _prompts(arguments: argparse.Namespace) -> list[str]:
    prompts = list(arguments.prompt)
    if arguments.prompts is not None:
        from ldm.data.text import lines_of

        prompts += lines_of(Path(arguments.prompts))
    if not prompts:
        raise ValueError('no prompt: write ldm sample RUN "a prompt", or --prompts FILE')
    return prompts


def _check_source(arguments: argparse.Namespace) -> None:
    for name in ("strength", "mask"):
        value = getattr(arguments, name)
        if value is not None and arguments.init_image is None:
            raise ValueError(f"--{name} {value}: there is no picture; add --init-image FILE")
    strength = arguments.strength
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(
            f"--strength {strength}: it is how much of --init-image may change, in (0, 1]; give "
            "e.g. 0.6"
        )


def _source(arguments: argparse.Namespace, size: int, beside: Any) -> Any:
    """The picture to begin from, cut to the run's size, with its mask. A network that enlarges is
    told of the picture, and begins from noise unless --strength says otherwise."""
    from ldm.commands.reconstruct import read_picture
    from ldm.generate import Source

    if arguments.init_image is None:
        return None
    enlarging = beside is not None and not beside.paints
    if enlarging and arguments.mask is not None:
        raise ValueError(
            f"--mask {arguments.mask}: this run enlarges pictures (module.conditioning.spatial) "
            "and paints no part of them; take --mask away, or name a run of another kind"
        )
    image, paint = read_picture(Path(arguments.init_image), size), None
    strength = 1.0 if enlarging and arguments.strength is None else arguments.strength
    if arguments.mask is not None:
        mask = read_picture(Path(arguments.mask), size)
        found, wanted = (_size(Path(name)) for name in (arguments.mask, arguments.init_image))
        if found != wanted:
            raise ValueError(
                f"--mask {arguments.mask} is {found[0]}x{found[1]} and --init-image "
                f"{arguments.init_image} {wanted[0]}x{wanted[1]}: give a mask of the same size"
            )
        paint = (mask.mean(dim=1, keepdim=True) + 1) / 2
        strength = 1.0 if strength is None else strength
    return Source(image, 0.6 if strength is None else strength, paint)


def _size(path: Path) -> tuple[int, int]:
    """(width, height) as it is seen."""
    from PIL import Image

    from ldm.data.decode import upright

    with Image.open(path) as picture:
        return upright(picture).size


def _first_free(out: Path) -> int:
    """The number after the last picture there: none is overwritten."""
    numbers = [int(path.stem) for path in out.glob("*.png") if path.stem.isdecimal()]
    return max(numbers, default=-1) + 1
