"""Whether a value from YAML can be a constructor's argument: the signature is the schema.

A value is held against the annotation of the argument that it is given to; what a type cannot
say (a rate is positive, a probability below 1) stands in `RANGES` by the argument's name.
"""

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; `above` and `below` leave the ends out."""

    least: int | float = -math.inf
    most: int | float = math.inf
    above: int | float = -math.inf
    below: int | float = math.inf

    def holds(self, value: int | float) -> bool:
        """False for NaN too."""
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        words = [
            f"at least {self.least}" if self.least > -math.inf else "",
            f"more than {self.above}" if self.above > -math.inf else "",
            f"at most {self.most}" if self.most < math.inf else "",
            f"less than {self.below}" if self.below < math.inf else "",
        ]
        return " and ".join(word for word in words if word) or "a number"


COUNT = Range(least=1)
NOT_NEGATIVE = Range(least=0)
SHARE = Range(least=0, below=1)
RANGES = {
    **dict.fromkeys(
        [
            "steps",
            "width",
            "depth",
            "heads",
            "patch",
            "size",
            "blocks",
            "groups",
            "latent_channels",
            "in_channels",
            "text_width",
            "residual_blocks",
            "channels",
            "multipliers",
            "max_steps",
            "num_nodes",
            "embed_dim",
            "scales",
            "rank",
            "out_channels",
            "image_channels",
        ],
        COUNT,
    ),
    **dict.fromkeys(
        [
            "weight_decay",
            "warmup",
            "edges",
            "kl",
            "lecam",
            "r1",
            "start",
            "ramp",
            "depths",
            "attention_levels",
            "middle_depth",
            "pooled_width",
            "final",
            "perceptual_weight",
            "weight",
            "eta",
            "free_nats",
        ],
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        (
            "condition_dropout",
            "encoder_dropout",
            "token_masking",
            "dropout",
            "ema_decay",
            "betas",
            "momentum",
        ),
        SHARE,
    ),
    **dict.fromkeys(
        (
            "lr",
            "gamma",
            "gradient_clip_val",
            "eps",
            "std",
            "val_check_interval",
        ),
        Range(above=0),
    ),
}


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's or a class's arguments; those that cannot be read are left
    out, and with them their check."""
    called = function.__init__ if inspect.isclass(function) else function
    try:
        hints = typing.get_type_hints(called)
    except (NameError, TypeError, AttributeError):  # another library's annotations
        return {}
    result = hints.pop("return", Any)
    return {**hints, "return": function if inspect.isclass(function) else result}


def misfit(value: Any, hint: Any) -> str | None:
    """What is wrong with the value, as "takes WHAT, not WHAT"; None where it fits or nobody can
    tell. A node with `_target_` is judged by `class_misfit`, not here."""
    if _fits(value, hint):
        return None
    return f"takes {told(hint)}, not {value!r}"


def out_of_range(name: str, value: Any) -> str | None:
    """Of an argument's numbers, by the argument's name; None is no number."""
    allowed = RANGES.get(name)
    if allowed is None:
        return None
    values = value if isinstance(value, list | tuple) else [value]
    for one in values:
        number = isinstance(one, int | float) and not isinstance(one, bool)
        if number and not allowed.holds(one):
            return f"must be {allowed}, not {one!r}"
    return None


def class_misfit(target: Callable[..., Any], hint: Any) -> str | None:
    """Whether the object that `target` makes can be the argument: a subclass of what is asked, or
    with all methods of the protocol that is asked."""
    made = target if inspect.isclass(target) else hints_of(target).get("return")
    wanted = [one for one in _alternatives(hint) if one is not type(None)]
    if not inspect.isclass(made) or not wanted or not all(map(inspect.isclass, wanted)):
        return None
    if any(_is_one(made, one) for one in wanted):
        return None
    names = " or ".join(one.__name__ for one in wanted)
    return f"takes {names}, and {made.__name__} is none"


def _is_one(made: type, wanted: type) -> bool:
    if not vars(wanted).get("_is_protocol", False):
        return issubclass(made, wanted)
    # Attributes that a constructor sets cannot be seen on the class; methods can.
    methods = {name for name, value in vars(wanted).items() if inspect.isfunction(value)}
    return methods - {"__init__", "__subclasshook__"} <= set(dir(made))


def told(hint: Any) -> str:
    """An annotation in words that a person reads."""
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return " or ".join(repr(one) for one in get_args(hint))
    alternatives = _alternatives(hint)
    if len(alternatives) > 1:
        return " or ".join(dict.fromkeys(told(one) for one in alternatives))
    origin = get_origin(hint)
    if origin is not None and _is_sequence(origin):
        inner = [a for a in get_args(hint) if a is not Ellipsis]
        return "a list of " + " and ".join(dict.fromkeys(told(one) for one in inner))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(hint, getattr(origin or hint, "__name__", str(hint)))


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any or hint is object or isinstance(hint, TypeVar | str):
        return True
    alternatives = _alternatives(hint)
    if len(alternatives) > 1:
        return any(_fits(value, one) for one in alternatives)
    origin = get_origin(hint) or hint
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in get_args(hint))
    scalars: dict[Any, Callable[[], bool]] = {
        type(None): lambda: value is None,
        bool: lambda: isinstance(value, bool),
        int: lambda: isinstance(value, int) and not isinstance(value, bool),
        float: lambda: isinstance(value, int | float) and not isinstance(value, bool),
        str: lambda: isinstance(value, str),
        Path: lambda: isinstance(value, str),
    }
    if origin in scalars:
        return scalars[origin]()
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if _is_sequence(origin):
        return _fits_sequence(value, origin, get_args(hint))
    # Where an object is wanted, only a node with _target_ can describe it.
    plain = value is None or isinstance(value, str | int | float | list)
    return not (inspect.isclass(origin) and plain)


def _fits_sequence(value: Any, origin: Any, inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if not inner:
        return True
    if origin is tuple and Ellipsis not in inner:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(isinstance(one, Mapping) or _fits(one, inner[0]) for one in value)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    origin = get_origin(hint)
    return get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)


def _is_sequence(origin: Any) -> bool:
    return inspect.isclass(origin) and issubclass(origin, Sequence) and origin is not str
