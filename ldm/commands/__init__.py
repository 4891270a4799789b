"""The ldm command: one small module a verb. Hydra stops here."""

import argparse
import os
import sys
from importlib import import_module

from ldm.commands.errors import reported

VERBS = (
    "quickstart",
    "shards",
    "encode",
    "check",
    "sample",
    "explain",
    "reconstruct",
    "stages",
    "importing",
    "export",
    "stats",
    "evaluate",
    "evidence",
    "runs",
    "config",
    "report",
    "gallery",
    "sweep",
    "doctor",
    "consolidate",
    "plan",
    "completion",
)


def parser_of_all() -> argparse.ArgumentParser:
    """`ldm` with all its verbs."""
    parser = argparse.ArgumentParser(
        prog="ldm", description="Latent diffusion models, from pictures to prompted samples."
    )
    _add_verbs(parser)
    return parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Verb -> its own parser."""
    return _add_verbs(argparse.ArgumentParser(prog="ldm"))


def _add_verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        import_module(f"ldm.commands.{verb}").add_parser(subparsers)
    return subparsers.choices


def main() -> int:
    """Parse the command line and run the verb."""
    arguments = parser_of_all().parse_args()
    try:
        code = reported(lambda: arguments.func(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # `ldm … | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
