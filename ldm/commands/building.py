"""The only place that turns a configuration node into an object.

A node is a constructor call: `_target_` and its arguments. What may be called is what the
project, its declared libraries and the packages named in the environment define; a configuration
that came with a checkpoint is no licence to call anything else. Arguments are checked against the
signature, with the full key.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from ldm.commands.arguments import class_misfit, hints_of, misfit, out_of_range, told
from ldm.commands.errors import nearest

ALLOWED = ("ldm.", "torch.optim.", "torch.nn.", "lightning.", "torchmetrics.")
TRUST = "LDM_TRUST"  # environment: packages of the user's own that may be called, too, by commas
_RESERVED = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
WEIGHTS = "init"  # of a network's node: where its weights come from, no argument of its constructor
UNKNOWN = object()  # stands for a value that only the first stage or the text encoder will tell


def build(config: Any, key: str, **objects: Any) -> Any:
    """The object that the node describes; `objects` are arguments that no YAML can hold.

    ValueError names the key when the target is not allowed, does not exist, does not take
    what it is given, or refuses it.
    """
    node: Any = OmegaConf.to_container(config, resolve=True) if _is_node(config) else config
    check(node, key, tuple(objects))
    if isinstance(node, Mapping) and WEIGHTS in node:
        node = {name: value for name, value in node.items() if name != WEIGHTS}
    try:
        if not objects:
            return instantiate(node, _convert_="all")
        # Not as arguments of instantiate, which would turn dataclasses among them into
        # dictionaries.
        made = instantiate({**node, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        raise refusal(error, key) from error
    return made(**objects)


def refusal(error: InstantiationException, key: str) -> Exception:
    """What a constructor said, after the key of its node."""
    cause = error.__cause__
    if cause is None:
        return ValueError(f"{key}: {' '.join(str(error).split())}")
    inner = getattr(error, "full_key", None)
    where = f"{key}.{inner}" if isinstance(inner, str) and inner else key
    text = str(cause) or type(cause).__name__
    told_already = text.startswith(key) or f"{key}." in text or f"{key}=" in text
    message = text if told_already else f"{where}: {text}"
    return FileNotFoundError(message) if isinstance(cause, OSError) else ValueError(message)


def check(node: Any, key: str, given: Sequence[str] = ()) -> None:
    """Refuse targets and arguments that cannot be built, here and in everything nested."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(node, key, given)
        for name, value in node.items():
            check(value, f"{key}.{name}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            check(value, f"{key}[{number}]")


def _check_call(node: Mapping[str, Any], key: str, given: Sequence[str]) -> None:
    function = target_of(node["_target_"], key)
    arguments = {name for name in node if name not in _RESERVED}
    if "." not in key and WEIGHTS in arguments:
        _check_argument(node[WEIGHTS], str | None, WEIGHTS, f"{key}.{WEIGHTS}")
        arguments.remove(WEIGHTS)
    parameters = inspect.signature(function).parameters
    hints = hints_of(function)
    for name in sorted(arguments & set(parameters)):
        if node[name] is None and parameters[name].default is None:
            continue  # whatever its annotation says
        _check_argument(node[name], hints.get(name, Any), name, f"{key}.{name}")
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in sorted(arguments - set(parameters)):
        raise ValueError(
            f"{key}.{name}: {node['_target_']} takes no such argument"
            f"{nearest(name, list(parameters))}; take it out or rename it"
        )
    if node.get("_partial_") or "_args_" in node:
        return
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and name not in arguments
    ]
    for name in missing:
        if name not in given:
            raise ValueError(f"{key}.{name}: {node['_target_']} needs it; set {key}.{name}=VALUE")


def _check_argument(value: Any, hint: Any, name: str, key: str) -> None:
    if value is UNKNOWN:
        return
    if isinstance(value, Mapping) and "_target_" in value:
        if value.get("_partial_"):
            return
        if wrong := class_misfit(target_of(value["_target_"], key), hint):
            raise ValueError(f"{key}: {wrong}; name another {key}._target_")
        return
    if wrong := misfit(value, hint):
        raise ValueError(f"{key}={shown(value)}: {wrong}; set {key} to {told(hint)}")
    if wrong := out_of_range(name, value):
        raise ValueError(f"{key}={shown(value)}: {wrong}; set another {key}")


def shown(value: Any) -> str:
    """A value as one would type it, shortened."""
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_scalar(value) else None
    text = text or str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def target_of(path: Any, key: str) -> Callable[..., Any]:
    """What `_target_` names; ValueError where it may not be called or does not exist."""
    own = (f"{name.strip()}." for name in os.environ.get(TRUST, "").split(",") if name.strip())
    allowed = (*ALLOWED, *own)
    remedy = f"name one of those, or set {TRUST}=PACKAGE in the environment for code of your own"
    if not isinstance(path, str) or not path.startswith(allowed):
        raise ValueError(
            f"{key}._target_={path}: only names that begin with {', '.join(allowed)} are called; "
            + remedy
        )
    try:
        found: Callable[..., Any] = get_object(path)
    except Exception as error:
        raise ValueError(
            f"{key}._target_={path}: cannot be imported ({_first_line(error)}){_siblings(path)}"
        ) from None
    if not callable(found):
        raise ValueError(f"{key}._target_={path}: is no class or function; name one")
    home = inspect.getmodule(found)  # a module lends its name to all that it imports
    if home is None or not f"{home.__name__}.".startswith(allowed):
        raise ValueError(
            f"{key}._target_={path}: belongs to {'no module' if home is None else home.__name__}, "
            f"and only what is defined in {', '.join(allowed)} is called; {remedy}"
        )
    return found


def _siblings(path: str) -> str:
    module, _, name = path.rpartition(".")
    try:
        names = [key for key, value in vars(get_object(module)).items() if inspect.isclass(value)]
        same = [key for key in names if key.lower() == name.lower()]
        near = f"; did you mean {same[0]!r}?" if same else nearest(name, names)
        return near or "; check its spelling"
    except Exception:  # the module is what is misspelt
        return "; check its spelling"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_node(config: Any) -> bool:
    return isinstance(config, DictConfig) or OmegaConf.is_list(config)
