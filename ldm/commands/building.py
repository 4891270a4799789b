"""The only place that turns a configuration node into an object.

A node is a constructor call: `_target_` and its arguments. What may be called is what the
project and its declared libraries export; a configuration that came with a checkpoint is no
licence to call anything else. Arguments are checked against the signature, with the full key.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from ldm.commands.errors import nearest

ALLOWED = ("ldm.", "torch.optim.", "torch.nn.", "lightning.", "torchmetrics.")
_RESERVED = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def build(config: Any, key: str, **objects: Any) -> Any:
    """The object that the node describes; `objects` are arguments that no YAML can hold.

    ValueError names the key when the target is not allowed, does not exist, or does not take
    what it is given.
    """
    node = OmegaConf.to_container(config, resolve=True) if _is_node(config) else config
    check(node, key, tuple(objects))
    if not objects:
        return instantiate(node, _convert_="all")
    # Not as arguments of instantiate, which would turn dataclasses among them into dictionaries.
    return instantiate({**node, "_partial_": True}, _convert_="all")(**objects)


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
    function = _target(node["_target_"], key)
    arguments = {name for name in node if name not in _RESERVED}
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in sorted(arguments - set(parameters)):
        raise ValueError(
            f"{key}.{name}: {node['_target_']} takes no such argument"
            f"{nearest(name, list(parameters))}"
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


def _target(path: Any, key: str) -> Callable[..., Any]:
    if not isinstance(path, str) or not path.startswith(ALLOWED):
        raise ValueError(
            f"{key}._target_={path}: only names that begin with {', '.join(ALLOWED)} are called"
        )
    try:
        found: Callable[..., Any] = get_object(path)
    except Exception as error:
        raise ValueError(f"{key}._target_={path}: cannot be imported ({error})") from None
    return found


def _is_node(config: Any) -> bool:
    return isinstance(config, DictConfig) or OmegaConf.is_list(config)
