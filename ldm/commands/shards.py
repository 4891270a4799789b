"""`ldm shards make|info|verify`: tar shards out of pictures, and what shards hold."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any

_OPTIONS = {  # of `make`, with their defaults: what the shards depend on
    "size": None,
    "background": "white",
    "format": None,
    "quality": 95,
    "shard_size": 10_000,
    "hold_out": None,
    "hold_out_every": 20,
    "missing_caption": "error",
    "min_side": 1,
    "max_aspect": None,
    "max_pixels": 64_000_000,
    "min_score": None,
    "tolerate": 0.0,
}


def add_parser(subparsers: Any) -> None:
    """The verb `shards` and its own verbs."""
    parser = subparsers.add_parser("shards", help="make, inspect and verify tar shards")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_make(verbs)
    info = verbs.add_parser("info", help="counts, sizes, captions, a sheet of random samples")
    info.add_argument("shards", help="a folder of shards, or their paths with braces and globs")
    info.add_argument("--sheet", metavar="PNG", help="write random samples with captions to PNG")
    info.set_defaults(func=run)
    verify = verbs.add_parser("verify", help="read and decode everything, name what is broken")
    verify.add_argument("shards", help="a folder of shards, or their paths with braces and globs")
    verify.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    verify.set_defaults(func=run)


def _add_make(verbs: Any) -> None:
    make = verbs.add_parser(
        "make",
        help="write shards from pictures",
        description="SRC is a folder: with metadata.jsonl (file_name, text), or with a .txt beside "
        "each picture, or with one folder per class; a .csv or .parquet of paths and captions; a "
        "Hugging Face data set on disk; or shards, to filter, shrink or cut them anew.",
    )
    make.add_argument("source", metavar="SRC")
    make.add_argument("destination", metavar="DST")
    make.add_argument("--size", type=int, help="shrink so that the short side has SIZE pixels")
    make.add_argument("--background", help="behind transparent pictures")
    make.add_argument("--format", choices=["webp", "png", "jpg"], help="default: webp with --size")
    make.add_argument("--quality", type=int, help="1 to 100; 100 is lossless in webp")
    make.add_argument("--shard-size", type=int, help="samples a shard")
    make.add_argument("--hold-out", metavar="PATTERN", help="regular expression, see docs/data.md")
    make.add_argument("--hold-out-every", type=int, metavar="N")
    make.add_argument("--missing-caption", choices=["error", "drop", "empty"])
    make.add_argument(
        "--min-side", type=int, metavar="PIXELS", help="leave out shorter short sides"
    )
    make.add_argument(
        "--max-aspect", type=float, help="leave out more of long side over short side"
    )
    make.add_argument("--max-pixels", type=int, help="refuse larger pictures (default 64 million)")
    make.add_argument(
        "--min-score",
        action="append",
        metavar="FIELD=VALUE",
        help="leave out less in this field of metadata.jsonl, the table, or the shards' JSON",
    )
    make.add_argument("--tolerate", type=float, help="share of samples that may be unreadable")
    make.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    make.set_defaults(func=run, **_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Exit code 0; what is wrong with the user's input is a ValueError."""
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "make": _make,
        "info": _info,
        "verify": _verify,
    }
    return verbs[args.verb](args)


def _make(args: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.progress import Progress

    from ldm.data.entries import with_captions
    from ldm.data.hold_out import held_out
    from ldm.data.keep import Keep
    from ldm.data.losses import Losses
    from ldm.data.make import Encoding, make_shards
    from ldm.data.tables import entries_of

    _refuse_values(args)
    if os.path.realpath(args.source) == os.path.realpath(args.destination):
        raise ValueError(f"SRC and DST are both {args.source}; name another folder for the shards")
    scores = _scores(args.min_score or [])
    keep = Keep(args.min_side, args.max_aspect, args.max_pixels, scores, "empty")
    losses = Losses(args.tolerate)
    found = entries_of(args.source, keep, losses)
    losses.refuse(losses.count + len(found.entries))
    entries = with_captions(found.entries, args.missing_caption)
    held = held_out([entry.caption for entry in entries], args.hold_out_every, args.hold_out)
    splits = {
        "train": [entry for entry, out in zip(entries, held, strict=True) if not out],
        "val": [entry for entry, out in zip(entries, held, strict=True) if out],
    }
    encoding = Encoding(args.size, args.background, args.format, args.quality, args.max_pixels)
    with Progress(transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("shards", total=len(entries))
        manifest = make_shards(
            splits,
            Path(args.destination),
            encoding,
            shard_size=args.shard_size,
            jobs=args.jobs,
            command=_recorded(args),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            losses=losses,
        )
    print(f"{args.destination}: {manifest['samples']}")
    for count, why in (
        (found.unfit, "by --min-side, --max-aspect, --max-pixels or --min-score"),
        (len(found.entries) - len(entries), "without a caption"),
        (losses.count, f"unreadable: {losses}"),
    ):
        if count:
            print(f"left out {count:,} {why}")
    return 0


def _recorded(args: argparse.Namespace) -> str:
    """The command with which these shards can be made again, without this machine's folders."""
    words = ["ldm", "shards", "make", os.path.basename(os.path.normpath(args.source))]
    words += [os.path.basename(os.path.normpath(args.destination))]
    for name, default in _OPTIONS.items():
        value = vars(args)[name]
        if value != default:
            option = f"--{name.replace('_', '-')}"
            words += [word for one in _listed(value) for word in (option, str(one))]
    return shlex.join(words)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _scores(options: list[str]) -> dict[str, float]:
    scores = {}
    for option in options:
        name, _, value = option.partition("=")
        try:
            scores[name] = float(value)
        except ValueError:
            raise ValueError(f"--min-score {option!r}; write FIELD=VALUE with a number") from None
    return scores


def _refuse_values(args: argparse.Namespace) -> None:
    from ldm.data.decode import colour_of

    for name in ("size", "shard_size", "jobs", "min_side", "max_aspect", "max_pixels"):
        value = vars(args)[name]
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; set 1 or more")
    if not 1 <= args.quality <= 100:
        raise ValueError(f"--quality is {args.quality}; set 1 to 100")
    try:
        colour_of(args.background)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    for name in ("background", "quality"):
        value = vars(args)[name]
        if args.size is None and args.format is None and value != _OPTIONS[name]:
            raise ValueError(
                f"--{name} {value} changes nothing where pictures are copied as they are; set "
                "--size or --format too, or leave it out"
            )
    if not 0 <= args.tolerate < 1:
        raise ValueError(f"--tolerate is {args.tolerate:g}; set a share in [0, 1)")


def _info(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ldm.data.keep import Keep
    from ldm.data.opening import open_index
    from ldm.data.reading import Reading
    from ldm.data.report import Sheet, describe
    from ldm.data.shards import ShardData
    from ldm.data.sources import Source, expand

    if args.sheet and not args.sheet.lower().endswith(".png"):
        raise ValueError(f"--sheet {args.sheet}: name a file that ends in .png")
    reading = Reading(salvage=True, tolerate=0.99)  # whatever there is to be seen
    sources = expand(_pattern(args.shards), reading)
    splits: dict[str, list[Source]] = {}
    for source in sources:
        splits.setdefault(source.base.rpartition("-")[0], []).append(source)
    for split, members in splits.items():
        print(f"{split or 'shards'}")
        for line in describe([open_index(source, reading) for source in members]):
            print(f"  {line}")
    if args.sheet:
        data = ShardData(
            [source.name for source in sources],
            128,
            keep=Keep(missing_caption="empty"),
            reading=reading,
        )
        Sheet().save(data, Path(args.sheet))
        print(f"sheet      {args.sheet}")
    return 0


def _pattern(shards: str) -> str:
    return os.path.join(shards, "*.tar") if os.path.isdir(shards) else shards


def _verify(args: argparse.Namespace) -> int:
    """Exit code 1 where something is broken."""
    from ldm.data.pool import pool
    from ldm.data.reading import Reading
    from ldm.data.sources import expand
    from ldm.data.verify import verify

    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; set 1 or more")
    sources = expand(_pattern(args.shards), Reading())
    bad = samples = 0
    with pool(min(args.jobs, len(sources)), chunk=1) as run_all:
        for finding in run_all(verify, sources):
            samples += finding.samples
            bad += len(finding.problems)
            for problem in finding.problems:
                print(f"{finding.shard} | {problem}")
    print(f"{len(sources)} shards, {samples:,} samples, {bad:,} problems")
    return 1 if bad else 0
