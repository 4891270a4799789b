"""The options that say how pictures are drawn, shared by `sample`, `evaluate` and `evidence`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Asked:
    """What differs from the run's own way of drawing; None is the run's."""

    steps: int | None = None
    passes: int | None = None
    sampler: str | None = None
    grid: str | None = None
    eta: float | None = None
    guidance: float | None = None
    guidance_kind: str | None = None
    guidance_interval: str | None = None
    guidance_rescale: float | None = None
    thresholding: float | None = None
    autoguidance: str | None = None
    overrides: Sequence[str] = ()
    negative: str = ""
    device: str | None = None

    @staticmethod
    def of(arguments: argparse.Namespace) -> "Asked":
        """The options that a verb has; the others are the run's."""
        given = vars(arguments)
        return Asked(**{f.name: given[f.name] for f in fields(Asked) if f.name in given})


def add_options(parser: argparse.ArgumentParser) -> None:
    """How pictures are drawn."""
    group = parser.add_argument_group("drawing", "where nothing is given, as the run says")
    group.add_argument("--steps", type=int, help="solver steps")
    group.add_argument("--passes", type=int, help="as many steps as so many network passes pay for")
    group.add_argument("--sampler", metavar="NAME", help="ddim, ddpm, euler, heun, dpmpp_2m, …")
    group.add_argument("--grid", metavar="NAME", help="where it stops: uniform, karras, shifted, …")
    group.add_argument("--eta", type=float, help="share of fresh noise, 0 to 1 (ddim, dpmpp_2m)")
    group.add_argument("--guidance", type=float, metavar="SCALE", help="1 is none")
    group.add_argument(
        "--guidance-kind",
        metavar="NAME",
        help="classifier_free, interval, rescaled or adaptive (projected guidance, momentum)",
    )
    group.add_argument("--guidance-interval", metavar="LOW,HIGH", help="the times where it acts")
    group.add_argument("--guidance-rescale", type=float, metavar="SHARE", help="of the spread, 0.7")
    group.add_argument(
        "--autoguidance", metavar="RUN", help="lead away from a weaker run's network"
    )
    group.add_argument(
        "--thresholding", type=float, metavar="LIMIT", help="in deviations, such as 4"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="any sampler.… or guidance.… key; may be repeated",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    group.add_argument("--first-stage", help="another place of the run's first stage")


def refuse_below(arguments: argparse.Namespace, least: int, *names: str) -> None:
    """ValueError names the first of these options that is too small."""
    for name in names:
        if (value := getattr(arguments, name)) < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {value}: must be {least} or more")
