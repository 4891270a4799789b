"""Metrics by name: the group `metrics`, the networks that they look through, and the pictures that
they compare with. `ldm evaluate --metrics` and `evaluation.metrics` are both this."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchmetrics import Metric

from ldm.commands.building import build
from ldm.commands.choices import choice
from ldm.commands.first_stage import load_codec
from ldm.data import LatentData, all_pictures, posterior_of, validation_batches
from ldm.data.loading import Data
from ldm.frozen import LatentCodec
from ldm.metrics import Features, Reference, load_reference, reference_statistics
from ldm.training.data import PictureDataModule
from ldm.types import Posterior

ORIGINALS = "originals"  # of reconstructions: such a metric sees pairs
SPLITS = ("train", "val")


class References:
    """What metrics compare with, by split: statistics that were made before, or the data, through
    which each network looks once; it is opened when it is first needed.

    `named` are names or files of statistics, by split. Latents are decoded by what `codec` gives.
    """

    def __init__(
        self,
        data: Mapping[str, Callable[[], Data]],
        named: Mapping[str, str],
        device: torch.device,
        codec: Callable[[], LatentCodec] | None = None,
    ) -> None:
        self.openers, self.device, self.codec = data, device, codec
        self._opened: dict[str, Data] = {}
        self.named = {split: load_reference(name) for split, name in named.items()}
        self._made: dict[tuple[str, str], Reference] = {}

    def check(self, features: Features, split: str) -> None:
        """ValueError where there is nothing to compare with, or other features made it."""
        if split in self.named:
            self.named[split].moments_for(features)
        elif split not in self.openers:
            prefix = "" if split == "val" else f"{split}="
            raise ValueError(
                f"there is no {split} data to compare with: make statistics with `ldm stats make` "
                f"and name them with --reference {prefix}NAME, or leave out the metrics that "
                "compare"
            )

    def of(self, features: Features, split: str) -> Reference:
        """The statistics; ValueError as of `check`."""
        self.check(features, split)
        if split in self.named:
            return self.named[split]
        key = (features.name, split)
        if key not in self._made:
            self._made[key] = reference_statistics(features, self._pictures(self._data(split)))
        return self._made[key]

    def told(self, features: Features, split: str) -> str:
        """For a result: which pictures, how many of them, and their fingerprint."""
        made = self.of(features, split)
        decoded = split not in self.named and isinstance(self._data(split), LatentData)
        return f"{split}{', decoded latents' * decoded}: {made.count} pictures, {made.data}"

    def _data(self, split: str) -> Data:
        if split not in self._opened:
            self._opened[split] = self.openers[split]()
        return self._opened[split]

    def _pictures(self, data: Data) -> Iterator[Tensor]:
        if not isinstance(data, LatentData):
            yield from (batch["image"] for batch in all_pictures(data, device=self.device))
            return
        if self.codec is None:
            raise ValueError("latents hold no pictures: name statistics with --reference train=…")
        codec = self.codec().to(self.device)
        for batch in validation_batches(data, batch=64, rank=0, world=1, workers=0):
            found = posterior_of(batch)
            posterior = Posterior(found.mean.to(self.device), found.std.to(self.device))
            yield codec.decode(codec.latent_of(posterior))


def data_of(config: DictConfig) -> dict[str, Callable[[], Data]]:
    """What opens each split of a run's data."""
    return {split: partial(build, config.data[split], f"data.{split}") for split in SPLITS}


def named_references(asked: Sequence[str]) -> dict[str, str]:
    """NAME serves the metrics that compare with val, train=NAME those that compare with train."""
    found: dict[str, str] = {}
    for one in asked:
        split, _, name = one.partition("=")
        if split not in SPLITS or not name:
            split, name = "val", one
        if split in found:
            raise ValueError(f"--reference {one}: {split} has one already; give one for each split")
        found[split] = name
    return found


class _Part(NamedTuple):
    """One metric of a choice."""

    make: Callable[..., Metric]
    features: Any
    against: str | None


class MetricChoices:
    """Some of the group `metrics`, their networks loaded, so that what is missing is said now.

    ValueError names the choice, after `key`, where it was made. `clip` is the folder of another
    CLIP than the metric's own. With `pairs`, metrics of reconstructions are allowed.
    """

    def __init__(
        self,
        names: Sequence[str],
        references: References,
        *,
        clip: str | None = None,
        pairs: bool = False,
        key: str = "--metrics",
    ) -> None:
        self.references, self.key = references, key
        self.parts: dict[str, _Part] = {}
        for name in names:
            node: Any = OmegaConf.to_container(choice("metrics", name), resolve=True)
            network = node["features"] or {}
            if clip is not None and network.get("_target_", "").endswith(".clip_features"):
                network["folder"] = clip
            self._add(name, node, pairs)

    def _add(self, name: str, node: Mapping[str, Any], pairs: bool) -> None:
        against = node["against"]
        if against == ORIGINALS and not pairs:
            raise ValueError(
                f"{self.key} {name}: compares reconstructions with their pictures, which only an "
                "autoencoder makes; leave it out"
            )
        features: Any = None
        if node["features"] is not None:
            features = self._loaded(node["features"], name)
        if against in SPLITS:
            self.references.check(features, against)
        for metric, call in node["metrics"].items():
            make = build({**call, "_partial_": True}, f"metrics.{name}.{metric}")
            self.parts[metric] = _Part(make, features, against)

    def _loaded(self, node: Mapping[str, Any], name: str) -> Any:
        features = build(node, f"metrics.{name}.features")
        try:
            features.to(torch.device("cpu"))  # some read their file only now
        except FileNotFoundError as error:
            raise ValueError(f"{self.key} {name}: {error}") from None
        return features

    def makers(self, *, of_pairs: bool = False) -> dict[str, Callable[[], Metric]]:
        """What makes each metric and the reference that it needs: of the metrics of pictures, or
        of those of reconstructions and their pictures."""
        return {
            name: partial(self._make, part)
            for name, part in self.parts.items()
            if (part.against == ORIGINALS) == of_pairs
        }

    def names(self, metrics: Mapping[str, Any]) -> dict[str, str]:
        """What each metric's number is called in full: network, weights, resize, and what it was
        compared with."""
        told = {}
        for name, metric in metrics.items():
            part = self.parts[name]
            told[name] = str(metric.name)
            if part.against in SPLITS:
                told[name] += f" against {self.references.told(part.features, part.against)}"
        return told

    def _make(self, part: _Part) -> Metric:
        given = [] if part.features is None else [part.features]
        if part.against in SPLITS:
            given.append(self.references.of(part.features, part.against))
        return part.make(*given)


def in_run_metrics(
    config: DictConfig, data: PictureDataModule, *, pairs: bool = False
) -> MetricChoices:
    """What `evaluation` asks for; ValueError where weights or statistics are missing. No picture is
    looked at before the first evaluation."""
    evaluation = config.evaluation
    named = named_references(evaluation.reference or [])
    splits = {"val": lambda: data.val, "train": lambda: data.train}
    on_gpu = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")  # the rank's own, once training has begun
    references = References(splits, named, device, lambda: load_codec(config.first_stage))
    return MetricChoices(
        evaluation.metrics, references, clip=evaluation.clip, pairs=pairs, key="evaluation.metrics"
    )
