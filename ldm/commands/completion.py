"""`ldm completion`: what a shell needs to complete keys, choices, verbs and options by itself.

Hydra's own completion knows no choices in subfolders, as `experiment=emoji/diffusion` is one, and
starts Python at every press of the key.
"""

import argparse
import re
from pathlib import Path
from typing import Any

STAGES = ("autoencoder", "diffusion", "clip")
SETTERS = ("check", "sweep", "plan", "quickstart", "config")  # verbs that take key=value


def add_parser(subparsers: Any) -> None:
    """The verb."""
    parser = subparsers.add_parser("completion", help='for bash: eval "$(ldm completion)"')
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    print(script())
    return 0


def script() -> str:
    """For bash, and for zsh after `bashcompinit`; it starts no Python."""
    from ldm.assets import resolve
    from ldm.commands import parsers
    from ldm.commands.errors import CONF, choices_of

    keys = _keys()
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    choices = [f"{group}={name}" for group in groups for name in choices_of(group)]
    words = {verb: _words(parser.format_help()) for verb, parser in parsers().items()}
    parts = {
        "__KEYS__": " ".join(f"{key}=" for key in sorted(keys.union(groups))),
        "__CHOICES__": " ".join(choices),
        "__VERBS__": " ".join(sorted(words)),
        "__WORDS__": "\n".join(f'    [{verb}]="{" ".join(some)}"' for verb, some in words.items()),
        "__SETTERS__": " | ".join(SETTERS),
    }
    text = Path(resolve("asset:completion.bash")).read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace(name, value)
    return text.rstrip("\n")


def _keys() -> set[str]:
    """What our own three recipes can be told, which is nearly everything."""
    from omegaconf import OmegaConf

    from ldm.commands.composing import composed
    from ldm.runs.folder import flatten

    found: set[str] = set()
    for stage in STAGES:
        tree: Any = OmegaConf.to_container(composed([f"experiment=emoji/{stage}"]), resolve=False)
        found |= {key for key in flatten(tree) if not key.endswith("_target_")}
    return found


def _words(told: str) -> list[str]:
    """Options and verbs of its own, of a verb's help: argparse indents the latter by four."""
    options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", told)
    return sorted({*options, *re.findall(r"^    ([a-z]+)\b", told, re.M)})
