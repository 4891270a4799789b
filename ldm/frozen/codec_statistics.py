"""What the latents of an encoder look like over a data set, and which weights made them."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from ldm import ranks
from ldm.files import write_text
from ldm.models import Autoencoder
from ldm.types import Posterior


@dataclass(frozen=True)
class LatentStatistics:
    """What the latents of one encoder look like over one data set.

    `std` includes the posterior's own spread, so that drawn latents have variance 1 after
    normalisation. `covariance` is of latent vectors over positions and pictures. `fingerprint` is
    None only for published codecs, whose weights come from elsewhere, and where the latents stay as
    they are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    factor: int
    fingerprint: str | None
    covariance: tuple[tuple[float, ...], ...] | None = None
    count: int = 0  # pictures measured
    smallest: tuple[int, int] | None = None  # height and width of the smallest picture measured
    largest: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"latent statistics of {len(self.mean)} means and {len(self.std)} standard "
                "deviations: set one of each for every latent channel"
            )
        both = list(zip(self.mean, self.std, strict=True))
        broken = [c for c, pair in enumerate(both) if not all(map(math.isfinite, pair))]
        if broken:
            raise ValueError(
                f"latent channels {broken} have no finite mean and std "
                f"({[both[c] for c in broken]}), so they cannot be normalised: measure them again, "
                "with an earlier checkpoint if the training diverged"
            )
        flat = [c for c, std in enumerate(self.std) if not std > 0]
        if flat:
            raise ValueError(
                f"latent channels {flat} have no spread (std {[self.std[c] for c in flat]}), so "
                "they cannot be normalised: train the autoencoder longer, with a smaller KL weight "
                "or with fewer latent channels"
            )

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return len(self.mean)

    def save(self, path: Path) -> None:
        """Write as JSON; the file is whole or not there."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "LatentStatistics":
        """Read what `save` wrote; ValueError when the file is no such record."""
        try:
            record: dict[str, Any] = json.loads(path.read_text())
            return cls(**{name: _as_tuple(value) for name, value in record.items()})
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} is no record of latent statistics ({error}): measure it again by running "
                "the autoencoder's training to its end"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass
class LatentMoments:
    """Running sums over latents, float64; ranks add up exactly as one process would."""

    channels: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.pictures = 0
        self.numbers = torch.zeros((), dtype=torch.float64, device=self.device)
        self.total = torch.zeros(self.channels, dtype=torch.float64, device=self.device)
        self.products = torch.zeros(self.channels, self.channels, dtype=torch.float64).to(
            self.device
        )
        self.spread = torch.zeros(self.channels, dtype=torch.float64, device=self.device)

    def update(self, posterior: Posterior) -> None:
        """Take in a batch; ValueError when a latent is not finite."""
        vectors = posterior.mean.double().transpose(0, 1).flatten(1)
        if not bool(torch.isfinite(vectors).all()):
            raise ValueError(
                "the encoder gives latents that are not finite: the checkpoint is damaged or its "
                "training diverged; take an earlier checkpoint"
            )
        self.pictures += len(posterior.mean)
        self.numbers += vectors.shape[1]
        self.total += vectors.sum(dim=1)
        self.products += vectors @ vectors.T
        self.spread += posterior.std.double().square().sum(dim=(0, 2, 3))

    def add_ranks(self) -> None:
        """Sum over all ranks of the default process group; every rank must call it."""
        pictures = torch.tensor(self.pictures, device=self.device)
        ranks.add(pictures, self.numbers, self.total, self.products, self.spread)
        self.pictures = int(pictures)

    def covariance(self) -> Tensor:
        """`[c c]` of drawn latents, float64."""
        mean = self.total / self.numbers
        means = self.products / self.numbers - mean.outer(mean)
        return means + torch.diag(self.spread / self.numbers)


@torch.no_grad()
def latent_statistics(
    autoencoder: Autoencoder, pictures: Iterable[Tensor], *, over_ranks: bool = False
) -> LatentStatistics:
    """Measure every picture, `[b 3 H W]`, once. With `over_ranks` each rank brings a share of the
    pictures and all get the same record; every rank must call it then."""
    device = autoencoder.last_layer().device
    moments = LatentMoments(autoencoder.latent_channels, device)
    sizes: set[tuple[int, int]] = set()
    for images in pictures:
        _refuse_not_finite(images, moments.pictures)
        moments.update(autoencoder.encode(images.to(device)))
        sizes.add((images.shape[2], images.shape[3]))
    if over_ranks:
        moments.add_ranks()
        gathered: list[set[tuple[int, int]]] = [set() for _ in range(ranks.count())]
        distributed.all_gather_object(gathered, sizes)
        sizes = set().union(*gathered)
    if not moments.pictures:
        raise ValueError("there are no pictures to measure latents on; check data.train")
    covariance = moments.covariance()
    return LatentStatistics(
        mean=tuple((moments.total / moments.numbers).tolist()),
        std=tuple(covariance.diagonal().clamp(min=0).sqrt().tolist()),
        factor=autoencoder.factor,
        fingerprint=fingerprint(autoencoder),
        covariance=tuple(tuple(row) for row in covariance.tolist()),
        count=moments.pictures,
        smallest=min(sizes, key=lambda size: size[0] * size[1]),
        largest=max(sizes, key=lambda size: size[0] * size[1]),
    )


def _refuse_not_finite(images: Tensor, earlier: int) -> None:
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise ValueError(
            f"picture {earlier + int(finite.int().argmin())} (counted from 0) has pixels that are "
            "not finite, so latents cannot be measured on it: mend it or take it out of data.train"
        )


def fingerprint(autoencoder: Autoencoder) -> str:
    """SHA-256 over the weights that make latents: another decoder leaves it as it is."""
    digest = hashlib.sha256()
    for number, part in enumerate(autoencoder.encoding()):
        for name, value in sorted(part.state_dict().items()):
            digest.update(f"{number}.{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
