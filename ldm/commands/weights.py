"""What a network starts from, and what a run's checkpoint holds: `backbone.init`,
`autoencoder.init` and `lora`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ldm.commands.building import WEIGHTS, build
from ldm.interop.files import read_weights
from ldm.interop.initialise import initialise
from ldm.interop.reading import holds_models, read_autoencoder, read_network
from ldm.models import LowRankAdaptation
from ldm.models.lora import merge_lora
from ldm.runs.checkpoints import Checkpoint, checkpoints
from ldm.runs.folder import RunFolder
from ldm.runs.processes import rank

OURS = "model.safetensors"  # written by `ldm import` and `ldm export --to safetensors`


def backbone_to_train(config: DictConfig) -> nn.Module:
    """The network that `backbone` describes, filled from backbone.init and with the low-rank layers
    of `lora`, where these are given. What became of each tensor is printed."""
    network: nn.Module = build(config.backbone, "backbone")
    start(network, config.backbone, "backbone")
    adaptation = adaptation_of(config)
    if adaptation is None:
        return network
    if config.backbone.get(WEIGHTS) is None:
        raise ValueError(
            "lora adapts weights that are trained already, and backbone.init names none: set "
            "backbone.init=PATH, or lora=none"
        )
    try:
        adaptation(network)
    except ValueError as error:
        raise ValueError(f"lora: {error}") from None
    return network


def trained_backbone(
    config: DictConfig, state: Mapping[str, Any], *, merged: bool = True
) -> nn.Module:
    """The network of a run with the weights of its checkpoint; low-rank layers are added into the
    weights unless `merged` is false."""
    network: nn.Module = build(config.backbone, "backbone")
    adaptation = adaptation_of(config)
    if adaptation is not None:
        adaptation(network)
    network.load_state_dict(state)
    if adaptation is not None and merged:
        merge_lora(network)
    return network


def adaptation_of(config: DictConfig) -> LowRankAdaptation | None:
    """What `lora` says; runs of before there was such a key have none."""
    node = config.get("lora")
    return None if node is None else build(node, "lora")


def start(network: nn.Module, node: Any, key: str) -> None:
    """Fill the network from `init` of its node, where that is given."""
    path = node.get(WEIGHTS)
    if path is None:
        return
    try:
        account = initialise(network, weights_at(Path(path), key))
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{key}.{WEIGHTS}={path}: {error}") from None
    if rank() == 0:
        lines = str(account).replace("\n", f"\n{'':>11}")
        print(f"    start  {key} from {path}: {lines}", flush=True)


def refuse_missing(node: Any, key: str) -> None:
    """FileNotFoundError where `init` names a place that is not there."""
    path = node.get(WEIGHTS)
    if path is not None and not Path(path).exists():
        raise FileNotFoundError(
            f"{key}.{WEIGHTS}={path}: no such file or folder; download or import the weights and "
            f"name their place, or set {key}.{WEIGHTS}=null"
        )


def weights_at(path: Path, key: str) -> dict[str, Tensor]:
    """Under our names: of a run (the average), of a folder that `ldm import` or `ldm export` wrote,
    or of another project's folder or file."""
    if not path.exists():
        raise FileNotFoundError(
            "no such file or folder; names on the hub are not fetched: download config.json and "
            "diffusion_pytorch_model.safetensors into a folder, or one .safetensors, and name it"
        )
    if (state := own_tensors(path, key)) is not None:
        return state
    for run in (path, path / "first_stage"):
        if RunFolder(run).config_file.is_file() and checkpoints(RunFolder(run).checkpoints):
            return _of_run(RunFolder(run), key)
    if not holds_models(path):
        raise FileNotFoundError(
            "neither a run, nor what `ldm import` or `ldm export` wrote, nor a folder or a file of "
            "another tool's weights; download them and name the place"
        )
    if key == "backbone":
        network = read_network(path)
        found = None if network is None else network.network
    else:
        first = read_autoencoder(path)
        found = None if first is None else first.autoencoder
    if found is None:
        raise ValueError(f"holds no {key} that is known here")
    return dict(found.state_dict())


def own_tensors(path: Path, key: str) -> dict[str, Tensor] | None:
    """Of a file that `ldm import` or `ldm export` wrote, or of the one in such a folder."""
    for file in (path, path / OURS, path / key / OURS):
        if file.is_file() and file.suffix == ".safetensors":
            state = read_weights(file)
            if _ours(state):
                return state
    return None


def _ours(state: Mapping[str, Tensor]) -> bool:
    marks = (
        "time.network.enter.weight",
        "encoder.levels.0.blocks.0.conv1.weight",
        "encoder.0.weight",
    )
    return any(name.endswith(marks) for name in state)


def _of_run(folder: RunFolder, key: str) -> dict[str, Tensor]:
    config = OmegaConf.create(folder.config())
    if key not in config:
        raise ValueError(f"a run of stage {config.get('stage_name')!r} has no {key}")
    state = averaged(newest(folder))
    return dict(trained_backbone(config, state).state_dict()) if key == "backbone" else state


def averaged(checkpoint: Checkpoint) -> dict[str, Any]:
    """The averaged network of a checkpoint."""
    state = checkpoint.load()["state_dict"]
    prefix = "average."
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def newest(folder: RunFolder) -> Checkpoint:
    """The newest checkpoint that is whole, without touching the folder."""
    for checkpoint in reversed(checkpoints(folder.checkpoints)):
        if (damage := checkpoint.damage()) is None:
            return checkpoint
        print(f"warning: {checkpoint.path}: {damage}; it is passed over", file=sys.stderr)
    raise FileNotFoundError(
        f"{folder.checkpoints}: no whole checkpoint; train the run, or name another one"
    )
