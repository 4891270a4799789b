"""`ldm check`: whether a configuration can train, and what it would do; trains nothing.

`checked` is what `train.py` calls first, before anything is built or any folder made.
"""

import argparse
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

_PACKAGES = {  # that a choice needs and the project does not bring
    "ldm.training.loggers_elsewhere.WeightsAndBiases": "wandb",
    "ldm.training.loggers_elsewhere.MLflow": "mlflow",
}

MEASURED = ("val/", "train/", "sample/", "reconstruction/")  # how names of metrics begin


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser(
        "check", help="check a configuration and print its plan, without training"
    )
    parser.add_argument("override", nargs="*", help="as for train.py: experiment=… key=value")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; ValueError in one line where training would be refused."""
    from ldm.commands.composing import composed
    from ldm.commands.fitting import plan

    config = composed(arguments.override)
    checked(config)
    for name, value in plan(config):
        print(f"{name:>9}  {value}")
    return 0


def checked(config: Any) -> None:
    """Refuse keys that nobody reads, values of a wrong type or range, and parts that exclude each
    other; ValueError names the full key and what to set."""
    from omegaconf import OmegaConf

    from ldm.commands.errors import CONF
    from ldm.commands.schema import entries, required

    stage = OmegaConf.select(config, "stage_name")
    stages = sorted(path.stem for path in (CONF / "stage").glob("*.yaml"))
    if stage not in stages:
        raise ValueError(f"stage_name={stage}: no such stage; set stage to {', '.join(stages)}")
    for name in config:
        if str(name) not in entries(stage):
            raise ValueError(f"{name}: no such key{_near(str(name), '', entries(stage))}")
    raw: Any = OmegaConf.to_container(config, resolve=False)
    for name in required(stage):
        if not _has(raw, name):
            raise ValueError(
                f"{name}: every training of stage={stage} has it, and it is not here; take ~{name} "
                f"away, or set {name}=VALUE"
            )
    resolved: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _check_keys(_with_unknowns(resolved, raw), "", entries(stage))
    _check_together(resolved)


def _has(tree: Any, key: str) -> bool:
    """A null in place of a group is judged elsewhere."""
    for name in key.split("."):
        if not isinstance(tree, Mapping):
            return True
        if name not in tree:
            return False
        tree = tree[name]
    return True


def _with_unknowns(value: Any, raw: Any) -> Any:
    """The tree with UNKNOWN for references: where they lead to, the value is checked under its own
    name; what only the first stage or the text encoder will tell is checked when it is built."""
    from ldm.commands.building import UNKNOWN

    if isinstance(value, Mapping) and isinstance(raw, Mapping):
        return {name: _with_unknowns(child, raw.get(name)) for name, child in value.items()}
    return UNKNOWN if isinstance(raw, str) and raw.startswith("${") else value


def _check_keys(tree: Mapping[str, Any], prefix: str, entries: Mapping[str, Any]) -> None:
    from ldm.commands.building import check
    from ldm.commands.errors import nearest

    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and "_target_" in value:
            if key not in entries and prefix == "":
                raise ValueError(f"{key}: no such key{_near(str(name), prefix, entries)}")
            check(value, key, _given(key, value))
        elif key not in entries:
            siblings = [k.removeprefix(prefix) for k in entries if k.startswith(prefix)]
            near = nearest(str(name), [k for k in siblings if "." not in k])
            raise ValueError(
                f"{key}: no such key in this configuration{near}; take it out or rename it "
                "(`ldm config explain` lists all keys)"
            )
        elif isinstance(value, Mapping):
            if entries[key].is_call:
                raise ValueError(
                    f"{key}: nothing says what it is; choose one ({key}=NAME), or take ~{key} away"
                )
            _check_keys(value, f"{key}.", entries)
        else:
            _check_leaf(key, value, entries[key])


def _near(name: str, prefix: str, entries: Mapping[str, Any]) -> str:
    from ldm.commands.errors import nearest

    return nearest(name, [k for k in entries if "." not in k]) + "; take it out or rename it"


def _check_leaf(key: str, value: Any, entry: Any) -> None:
    from ldm.commands.arguments import Range, misfit, told
    from ldm.commands.building import UNKNOWN, shown
    from ldm.commands.schema import NUMBERS, hint_of

    if value is UNKNOWN:
        return
    if entry.is_node and (value is not None or None not in entry.defaults):
        raise ValueError(
            f"{key}={shown(value)}: {key} is a group of keys, not one value; set {key}.KEY=VALUE"
        )
    hint = hint_of(key, entry)
    if wrong := misfit(value, hint):
        raise ValueError(f"{key}={shown(value)}: {wrong}; set {key} to {told(hint)}")
    allowed = NUMBERS.get(key, Range())
    if isinstance(value, int | float) and not allowed.holds(value):
        raise ValueError(f"{key}={shown(value)}: must be {allowed}; set another {key}")


def _given(key: str, node: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments that the stage hands over as objects."""
    given = {
        "module": ("autoencoder", "network", "tokenizer", "objective", "codec", "captions"),
        "trainer": ("callbacks", "logger"),
        "logger": ("axis",),
    }
    return given.get(key, ())


def _check_together(config: Mapping[str, Any]) -> None:
    """What each key allows on its own and not with another."""
    from ldm.commands.placement import refuse_trainer

    trainer, evaluation = config.get("trainer", {}), config.get("evaluation", {})
    devices = devices_of(trainer)
    batch, turns = config["global_batch"], config["accumulate"]
    if batch % (devices * turns):
        raise ValueError(
            f"global_batch={batch} does not divide by {devices} devices x accumulate={turns}; "
            f"set global_batch to a multiple of {devices * turns}"
        )
    if trainer.get("accelerator") == "cpu" and str(config["precision"]).startswith("16"):
        raise ValueError(
            f"precision={config['precision']} needs a GPU; set precision=bf16-mixed or 32-true"
        )
    package = _PACKAGES.get((config.get("logger") or {}).get("_target_", ""))
    if package is not None and find_spec(package) is None:
        raise ValueError(
            f"logger={package}: the package {package} is not installed; pip install {package}, or "
            "set logger=none (TensorBoard and metrics.jsonl are always written)"
        )
    strategy = trainer.get("strategy")
    kind = strategy.get("_target_") if isinstance(strategy, Mapping) else None
    if config["precision"] == "bf16-true" and kind != "ldm.training.sharding.FullySharded":
        raise ValueError(
            "precision=bf16-true keeps float32 weights for optimizer and average only in parts; "
            "set trainer=fsdp, or precision=bf16-mixed, which does so with every trainer"
        )
    static = isinstance(strategy, Mapping) and strategy.get("static_graph")
    if static and config["stage_name"] == "autoencoder":
        raise ValueError(
            "trainer.strategy.static_graph=true promises that every step uses the same weights, "
            "and a critic that starts late breaks that; set it to false for this stage"
        )
    if config.get("module", {}).get("freeze_encoder") and config["autoencoder"]["init"] is None:
        raise ValueError(
            "module.freeze_encoder=true keeps the encoder as it is, and autoencoder.init=null "
            "leaves it random; set autoencoder.init=RUN, or module.freeze_encoder=false"
        )
    refuse_trainer(trainer)
    prompts = evaluation.get("grid_prompts")
    if prompts is not None and not prompts:
        raise ValueError("evaluation.grid_prompts=[]: nothing to draw; set null or some prompts")
    _check_metrics(evaluation.get("metrics") or [])
    best = config["checkpoint"]["best"]
    if best is not None and not best.removeprefix("-").startswith(MEASURED):
        raise ValueError(
            f"checkpoint.best={best}: no metric is called so; set one that begins with "
            f"{', '.join(MEASURED)}, such as val/loss"
        )
    keep, every = config["checkpoint"]["keep_every"], config["checkpoint"]["every"]
    if keep is not None and keep % every:
        raise ValueError(
            f"checkpoint.keep_every={keep} is never reached by checkpoint.every={every}; "
            "set checkpoint.keep_every to a multiple of it"
        )
    for split in ("train", "val"):
        size = config.get("data", {}).get(split, {}).get("size")
        if isinstance(size, int) and size != config["image_size"]:
            raise ValueError(
                f"data.{split}.size={size}, but image_size={config['image_size']}; "
                f"set image_size={size} and leave data.{split}.size to follow it"
            )


def _check_metrics(names: Sequence[str]) -> None:
    from ldm.commands.errors import CONF, nearest

    there = sorted(path.stem for path in (CONF / "metrics").glob("*.yaml"))
    for name in names:
        if name not in there:
            raise ValueError(
                f"evaluation.metrics={name}: no such metric{nearest(name, there)} "
                f"(there are: {', '.join(there)})"
            )


def devices_of(trainer: Mapping[str, Any]) -> int:
    """As far as the configuration says; `auto` counts as one."""
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
    if isinstance(devices, list):
        count = len(devices)
    elif isinstance(devices, int) and devices > 0:
        count = devices
    else:
        count = int(str(devices)) if str(devices).isdigit() else 1
    return max(count, 1) * nodes
