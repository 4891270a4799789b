"""What is remembered of a data set's pictures, so that generated ones can be compared with them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.metrics.features import Features
from ldm.tensor_files import write_tensors

_FORMAT = "ldm reference statistics 1"


@dataclass(frozen=True, eq=False)
class Reference:
    """Mean and covariance of a data set's features, and the features of some of its pictures.

    `features` is the name of what made them (network, weights, resize) and `data` a fingerprint of
    the pictures and captions. `samples` is None where only the moments were kept.
    """

    features: str
    count: int
    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]
    data: str
    samples: Float[Tensor, "n d"] | None = None

    def moments_for(self, features: Features) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
        """Mean and covariance; raises ValueError where other features made them."""
        self._check(features)
        return self.mean, self.covariance

    def samples_for(self, features: Features, minimum: int = 1) -> Float[Tensor, "n d"]:
        """Features of single pictures, at least `minimum` of them; ValueError where there are
        fewer or other features made them."""
        self._check(features)
        kept = 0 if self.samples is None else len(self.samples)
        if self.samples is None or kept < minimum:
            raise ValueError(
                f"this metric compares with {minimum} single pictures or more, and the reference "
                f"keeps {kept}: make it again with `ldm stats make … --keep N`"
            )
        return self.samples

    def _check(self, features: Features) -> None:
        if (self.features, len(self.mean)) != (features.name, features.width):
            raise ValueError(
                f"the reference was made with {self.features} ({len(self.mean)} wide) and cannot "
                f"be compared with {features.name} ({features.width} wide): make one with "
                "`ldm stats make` and the same --features"
            )

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; the covariance is kept as its upper triangle."""
        rows, columns = torch.triu_indices(len(self.mean), len(self.mean))
        tensors = {"mean": self.mean, "covariance": self.covariance[rows, columns]}
        if self.samples is not None:
            tensors["samples"] = self.samples
        record = {"features": self.features, "count": self.count, "data": self.data}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_tensors(Path(path), tensors, {"format": _FORMAT, "record": json.dumps(record)})


def load_reference(name: str | Path) -> Reference:
    """Reads a file that `Reference.save` wrote: a path, or the name of one in the cache folder."""
    path = Path(name) if Path(name).suffix else reference_path(str(name))
    if not path.is_file():
        raise ValueError(
            f"there are no reference statistics at {path}: make them with "
            f"`ldm stats make DATA --features … --name {path.stem}`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): make it again") from error
    if notes.get("format") != _FORMAT:
        raise ValueError(f"{path} does not hold reference statistics: name another file")
    record = json.loads(notes["record"])
    mean = tensors["mean"]
    rows, columns = torch.triu_indices(len(mean), len(mean))
    covariance = torch.zeros(len(mean), len(mean), dtype=mean.dtype)
    covariance[rows, columns] = tensors["covariance"]
    covariance[columns, rows] = tensors["covariance"]
    return Reference(
        record["features"],
        record["count"],
        mean,
        covariance,
        record["data"],
        tensors.get("samples"),
    )


def cache_folder() -> Path:
    """Where named statistics and networks' weights are looked up: $LDM_CACHE or ~/.cache/ldm."""
    return Path(os.environ.get("LDM_CACHE", "~/.cache/ldm")).expanduser()


def reference_path(name: str) -> Path:
    """The file of the statistics with that name."""
    return cache_folder() / "stats" / f"{name}.safetensors"
