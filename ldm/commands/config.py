"""`ldm config`: what keys mean, what can be chosen, how runs differ."""

import argparse
import inspect
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """The verb and its own verbs."""
    parser = subparsers.add_parser("config", help="explain a key, list choices, compare settings")
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    explain = verbs.add_parser("explain", help="type, default, meaning, who sets it")
    explain.add_argument("key", nargs="?", help="such as module.optimizer.lr (default: all keys)")
    explain.add_argument("override", nargs="*", help="as for train.py: stage=autoencoder …")
    explain.set_defaults(func=explain_key)
    listing = verbs.add_parser("list", help="the choices of a group, such as backbone")
    listing.add_argument("group", nargs="?", help="(default: the groups)")
    listing.set_defaults(func=list_choices)
    difference = verbs.add_parser("diff", help="what two runs or experiments set differently")
    difference.add_argument("first", metavar="RUN|EXPERIMENT")
    difference.add_argument("second", metavar="RUN|EXPERIMENT")
    difference.set_defaults(func=diff)


def explain_key(arguments: argparse.Namespace) -> int:
    """One key in full, or every key with its value."""
    from omegaconf import OmegaConf

    from ldm.commands.composing import composed
    from ldm.commands.errors import nearest
    from ldm.commands.schema import dumped, entries
    from ldm.runs.folder import flatten

    key, overrides = arguments.key, list(arguments.override)
    if key is not None and "=" in key:
        overrides, key = [key, *overrides], None
    config = composed(overrides)
    tree: Any = OmegaConf.to_container(config, resolve=False)
    flat = flatten(tree)
    if key is None:
        for name, value in flat.items():
            print(f"{name}: {dumped(value)}")
        return 0
    known = [*flat, *entries(config.stage_name)]
    found = OmegaConf.select(config, key, default=None) if key in known else None
    facts = {} if key in known else _argument(config, key)
    if key not in known and not facts:
        nodes = [k.rsplit(".", n)[0] for k in flat for n in range(1, k.count(".") + 1)]
        if key not in nodes:
            leaves = [k for k in known if k.rsplit(".")[-1] == key]
            hint = f"; did you mean {leaves[0]!r}?" if leaves else nearest(key, known)
            raise ValueError(f"{key}: no such key{hint} (`ldm config explain` lists all keys)")
    facts = {"value": dumped(flat.get(key, found)) if key in flat else "", **_facts(config, key)}
    print(key)
    for name, text in facts.items():
        if text:
            print(f"{name:>9}  {text}")
    for setter, value in _setters(key):
        print(f"{'set by':>9}  {setter}: {value}")
    return 0


def _facts(config: Any, key: str) -> dict[str, str]:
    """Of a constructor's argument where the key is one, else of the key's place in conf/."""
    from ldm.commands.arguments import RANGES, told
    from ldm.commands.schema import NUMBERS, entries, hint_of

    if facts := _argument(config, key):
        name = key.rpartition(".")[2]
        return {**facts, "range": str(RANGES[name]) if name in RANGES else ""}
    entry = entries(config.stage_name).get(key)
    if entry is None:
        return {}
    hint = hint_of(key, entry)
    return {
        "type": "a group of keys" if entry.is_node else "" if hint is Any else told(hint),
        "range": str(NUMBERS.get(key, "")),
        "meaning": entry.comment,
        "stands in": ", ".join(dict.fromkeys(f"conf/{file}" for file in entry.files)),
    }


def _argument(config: Any, key: str) -> dict[str, str]:
    from omegaconf import OmegaConf

    from ldm.commands.arguments import hints_of, told
    from ldm.commands.building import target_of

    node, _, name = key.rpartition(".")
    target = OmegaConf.select(config, f"{node}._target_") if node else None
    if target is None:
        return {}
    function = target_of(target, node)
    parameter = inspect.signature(function).parameters.get(name)
    if parameter is None:
        return {}
    needed = parameter.default is parameter.empty
    return {
        "type": told(hints_of(function).get(name, Any)),
        "default": "(none: must be set)" if needed else repr(parameter.default),
        "argument": f"of {target}",
        "meaning": _sentences(function, name),
    }


def _sentences(function: Any, name: str) -> str:
    """What the docstring says of the argument: its `name:` line, or the sentences that quote it."""
    text = inspect.getdoc(function) or ""
    for line in text.splitlines():
        if line.strip().startswith(f"{name}:"):
            return line.strip().removeprefix(f"{name}:").strip()
    sentences = " ".join(text.split()).replace(". ", ".\n").splitlines()
    said = [s for s in sentences if f"`{name}`" in s]
    return " ".join(said or sentences[:1])


def _setters(key: str) -> list[tuple[str, str]]:
    """The shipped experiments, and debug's choices, whose own file sets the key."""
    import yaml

    from ldm.commands.composing import choices
    from ldm.commands.errors import CONF
    from ldm.runs.folder import flatten

    found = []
    for group in ("experiment", "debug"):
        for name in choices(group):
            text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
            flat = flatten(yaml.safe_load(text) or {})
            if key in flat:
                found.append((f"{group}={name}", str(flat[key])))
    return found


def list_choices(arguments: argparse.Namespace) -> int:
    """Each choice with the words at the head of its file."""
    from ldm.commands.composing import choices
    from ldm.commands.errors import CONF
    from ldm.commands.schema import head_comment

    if arguments.group is None:
        for path in sorted(path for path in CONF.iterdir() if path.is_dir()):
            print(f"{path.name:12} {', '.join(choices(path.name))}")
        return 0
    names = choices(arguments.group)
    width = max((len(name) for name in names), default=0)
    for name in names:
        comment = head_comment(CONF / arguments.group / f"{name}.yaml")
        print(f"{name:{width}}  {comment}".rstrip())
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """Key, first value, second value."""
    from ldm.runs.folder import differences

    first, second = _settings(arguments.first), _settings(arguments.second)
    changed = {k: v for k, v in differences(first, second).items() if k not in ("name", "run_root")}
    for key, (before, after) in changed.items():
        print(f"{key}: {before} -> {after}")
    if not changed:
        print("no difference")
    return 0


def _settings(name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from ldm.commands.composing import choices, composed
    from ldm.runs.folder import RunFolder

    if (Path(name) / "config.yaml").is_file():
        return RunFolder(Path(name)).config()
    if name not in choices("experiment"):
        raise ValueError(
            f"{name}: neither a run folder nor an experiment; name a folder that train.py wrote, "
            f"or one of {', '.join(choices('experiment'))}"
        )
    tree: Any = OmegaConf.to_container(composed([f"experiment={name}"]), resolve=True)
    return tree
