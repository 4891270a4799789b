"""`ldm reconstruct`: pictures through a first stage and back."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("reconstruct", help="pictures through an autoencoder and back")
    parser.add_argument("run", help="the folder of an autoencoder run")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--out", metavar="DIR", default="out", help="where PNGs go (default: out)")
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
    from omegaconf import OmegaConf

    from ldm.commands.parts import load_codec
    from ldm.generate import grid, save_png
    from ldm.metrics.reconstruction import PSNR, SSIM
    from ldm.runs.folder import RunFolder

    targets = targets_of(arguments.images, arguments.out)
    lpips = _lpips(arguments.lpips)
    codec = load_codec(arguments.run)
    size = OmegaConf.create(RunFolder(Path(arguments.run)).config()).image_size
    pictures = [read_picture(Path(name), size) for name in arguments.images]
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


def read_picture(path: Path, size: int) -> Any:
    """`[1 3 size size]` in [-1, 1], decoded and cropped as training does it; ValueError names a
    file that is no picture."""
    import numpy as np
    import torch

    from ldm.data import normalise
    from ldm.data.decode import colour_of, cut_out, open_header, to_rgb, upright

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a picture")
    try:
        opened = upright(open_header(path.read_bytes(), max_pixels=64_000_000))
        picture = to_rgb(opened, colour_of("white"))
    except Exception as error:
        raise ValueError(f"{path} is no picture that can be decoded ({error})") from None
    window, _ = cut_out(np.array(picture), (size, size), (0.5, 0.5))
    return normalise(torch.from_numpy(np.array(window)).permute(2, 0, 1)[None])
