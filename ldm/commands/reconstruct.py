"""`ldm reconstruct`: pictures through a first stage and back."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.commands.tiles import add_tile_options, tiled


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("reconstruct", help="pictures through an autoencoder and back")
    parser.add_argument(
        "run",
        help="an autoencoder run (it need not have ended), one of its checkpoints, what `ldm "
        "import` wrote, or an autoencoder of another tool",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--out", metavar="DIR", default="out", help="where PNGs go (default: out)")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="pictures at their own size, cropped to a multiple of the factor (default: scaled and "
        "cropped to the run's image_size)",
    )
    add_tile_options(parser)
    parser.add_argument(
        "--lpips",
        metavar="FILE",
        help="torchvision's vgg16-397923af.pth, to measure LPIPS with (default: $LDM_VGG16, or "
        "weights/vgg16-397923af.pth, where that is a file)",
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write each picture beside its reconstruction, and print PSNR, SSIM and, where its weights are
    at hand, LPIPS."""
    from ldm.generate import grid, save_png
    from ldm.metrics.reconstruction import PSNR, SSIM

    targets = targets_of(arguments.images, arguments.out)
    lpips = _lpips(arguments.lpips)
    codec, size = first_stage(arguments.run)
    codec = tiled(codec, arguments)
    if arguments.whole:
        size = None
    elif size is None:
        raise ValueError(f"{arguments.run} says no image_size to scale pictures to; add --whole")
    factor = codec.autoencoder.factor
    pictures = [_picture(Path(name), size, factor) for name in arguments.images]
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    for name, picture, path in zip(arguments.images, pictures, targets, strict=True):
        made = codec.decode(codec.encode(picture))
        psnr, ssim = PSNR(), SSIM()
        psnr.update(made, picture)
        ssim.update(made, picture)
        scores = {"psnr": round(float(psnr.compute()), 3), "ssim": round(float(ssim.compute()), 4)}
        said = f"PSNR {scores['psnr']:.2f} dB  SSIM {scores['ssim']:.3f}"
        if lpips is not None:
            scores["lpips"] = round(float(lpips(made, picture)), 4)
            said += f"  LPIPS {scores['lpips']:.3f}"
        save_png(grid([picture[0], made[0]], 2), path, {"source": name, **scores})
        print(f"{path}  {said}")
    if lpips is None:
        print("no LPIPS: it needs torchvision's vgg16-397923af.pth; name it with --lpips FILE")
    return 0


def first_stage(run: str) -> tuple[Any, int | None]:
    """The autoencoder that is named, in a codec whose latents are as they come, and the image_size
    of its run; ValueError or FileNotFoundError where there is none."""
    from omegaconf import OmegaConf

    from ldm.commands.first_stage import first_stage_at, load_autoencoder
    from ldm.commands.weights import newest
    from ldm.frozen import LatentCodec, LatentStatistics
    from ldm.interop.reading import holds_models, read_autoencoder
    from ldm.runs.checkpoints import checkpoint_named, run_named
    from ldm.runs.folder import RunFolder

    folder = RunFolder(first_stage_at(str(run_named(Path(run)))))
    size: int | None = None
    if holds_models(folder.path) and not folder.config_file.is_file():
        found = read_autoencoder(folder.path)
        if found is None:
            raise ValueError(f"{run} holds no autoencoder that is known here; name one that is")
        autoencoder = found.autoencoder
    else:
        config = OmegaConf.create(folder.config())
        if (stage := config.get("stage_name")) != "autoencoder":
            raise ValueError(
                f"{run} holds a run of stage {stage!r}; name one that trained stage=autoencoder"
            )
        checkpoint = checkpoint_named(Path(run)) or newest(folder)
        autoencoder, size = load_autoencoder(config, checkpoint), config.image_size
    channels, factor = autoencoder.latent_channels, autoencoder.factor
    as_they_come = LatentStatistics((0.0,) * channels, (1.0,) * channels, factor, None)
    return LatentCodec(autoencoder, as_they_come), size


def targets_of(images: Sequence[str], out: str) -> list[Path]:
    """Where each picture's PNG goes: one name each, a repeated one numbered (x-2.png). ValueError
    where that is one of the pictures themselves."""
    pictures = {Path(name).resolve() for name in images}
    targets: list[Path] = []
    for name in images:
        path = Path(out) / f"{Path(name).stem}.png"
        numbers = itertools.count(2)
        while path in targets:
            path = path.with_name(f"{Path(name).stem}-{next(numbers)}.png")
        if path.resolve() in pictures:
            raise ValueError(
                f"--out {out}: {path} is one of the pictures to reconstruct and would be "
                "overwritten; set --out to another folder"
            )
        targets.append(path)
    return targets


def _lpips(given: str | None) -> Any:
    """The distance; None where no file is named and none is at the usual places."""
    import torch

    from ldm.commands.choices import choice
    from ldm.models import LPIPS

    usual = choice("metrics", "lpips").features.weights
    if given is None and not Path(usual).is_file():
        return None
    return LPIPS(given or usual).to(torch.device("cpu"))


def _picture(path: Path, size: int | None, factor: int) -> Any:
    return read_whole(path, factor) if size is None else read_picture(path, size)


def read_picture(path: Path, size: int) -> Any:
    """`[1 3 size size]` in [-1, 1], decoded and cropped as training does it; ValueError names a
    file that is no picture."""
    from ldm.data.decode import cut_out

    window, _ = cut_out(_pixels(path), (size, size), (0.5, 0.5))
    return _as_image(window)


def read_whole(path: Path, factor: int) -> Any:
    """`[1 3 H W]` at the picture's own size, but for the rows and columns at its edges that the
    factor leaves over; ValueError where nothing would be left."""
    pixels = _pixels(path)
    height, width = pixels.shape[:2]
    if min(height, width) < factor:
        raise ValueError(
            f"{path} is {height}x{width} pixels, less than one latent cell of {factor}x{factor}; "
            "take --whole away, or name a larger picture"
        )
    top, left = height % factor // 2, width % factor // 2
    rows, columns = height // factor * factor, width // factor * factor
    return _as_image(pixels[top : top + rows, left : left + columns])


def _pixels(path: Path) -> Any:
    import numpy as np

    from ldm.data.decode import colour_of, open_header, to_rgb, upright

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a picture")
    try:
        opened = upright(open_header(path.read_bytes(), max_pixels=64_000_000))
        return np.array(to_rgb(opened, colour_of("white")))
    except Exception as error:
        raise ValueError(f"{path} is no picture that can be decoded ({error})") from None


def _as_image(pixels: Any) -> Any:
    import numpy as np
    import torch

    from ldm.data import normalise

    return normalise(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])
