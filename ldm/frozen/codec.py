"""A frozen autoencoder, the record of what its latents look like, and the affine map between.

The record is a contract: it names the weights that it was measured with, and a codec is not built
from weights and a record that do not belong together.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from ldm import ranks
from ldm.files import write_text
from ldm.frozen.codec_tiles import in_tiles
from ldm.models import Autoencoder
from ldm.models.autoencoder import check_image
from ldm.types import Draws, Image, Latent, Posterior

LEAST_TILE = 16  # latent cells


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


class LatentCodec:
    """Pictures to normalised latents and back. A plain object: what is frozen is neither trained,
    nor sharded, nor checkpointed."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        statistics: LatentStatistics,
        *,
        tile: int | None = None,
        tile_passes: int | None = None,
    ) -> None:
        """Pictures of more than `tile` latent cells a side go through in overlapping tiles, with
        the memory that one tile takes, in as many passes as it takes to equal the whole, or in
        `tile_passes`; see `in_tiles`."""
        _refuse_mismatch(autoencoder, statistics)
        if tile is not None and tile < LEAST_TILE:
            raise ValueError(
                f"tile={tile} latent cells leave no room to overlap: set {LEAST_TILE} or more"
            )
        if tile_passes is not None and tile_passes < 1:
            raise ValueError(f"tile_passes={tile_passes}: set 1 or more, or none")
        self.tile, self.tile_passes = tile, tile_passes
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.statistics = statistics
        self.mean = torch.tensor(statistics.mean)[:, None, None]
        self.std = torch.tensor(statistics.std)[:, None, None]

    def to(self, device: torch.device) -> "LatentCodec":
        """Moves the autoencoder; returns itself."""
        self.autoencoder.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(c, h, w) of the latent of a square picture; ValueError when the factor does not
        divide its side."""
        factor = self.autoencoder.factor
        if image_size % factor:
            raise ValueError(
                f"image_size={image_size} does not divide by the autoencoder's factor {factor}: "
                f"set image_size to a multiple of it"
            )
        return (self.autoencoder.latent_channels, image_size // factor, image_size // factor)

    @torch.no_grad()
    def encode(self, image: Image, draws: Draws | None = None) -> Latent:
        """A draw from the posterior, its mean where there are no draws; normalised, float32."""
        return self.latent_of(self._posterior(image), draws)

    def latent_of(self, posterior: Posterior, draws: Draws | None = None) -> Latent:
        """The same from moments that were encoded before."""
        latent = posterior.mean
        if draws is not None:
            latent = posterior.sample(draws.normal(latent.shape[1:], "posterior"))
        return (latent.float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latent: Latent) -> Image:
        """The picture in [-1, 1], float32."""
        latent = latent * self.std + self.mean
        if self._small(latent.shape[2], latent.shape[3]):
            return self.autoencoder.decode(latent).float().clamp(-1, 1)
        return self._tiled(self.autoencoder.decode, latent, 1, self.autoencoder.factor).clamp(-1, 1)

    def _posterior(self, image: Image) -> Posterior:
        factor = self.autoencoder.factor
        check_image(image, self.autoencoder.image_channels, factor)
        if self._small(image.shape[2] // factor, image.shape[3] // factor):
            return self.autoencoder.encode(image)

        def moments(part: Image) -> Tensor:
            posterior = self.autoencoder.encode(part)
            return torch.cat([posterior.mean, posterior.std], dim=1)

        return Posterior(*self._tiled(moments, image, factor, 1).chunk(2, dim=1))

    def _small(self, rows: int, columns: int) -> bool:
        return self.tile is None or max(rows, columns) <= self.tile

    def _tiled(
        self, function: Callable[[Tensor], Tensor], x: Tensor, cell: int, out_cell: int
    ) -> Tensor:
        tile = self.tile or 0
        return in_tiles(
            lambda part: function(part).float(),
            x,
            cell=cell,
            out_cell=out_cell,
            tile=tile,
            # What a place sees does not grow with the tile.
            overlap=min(24, tile // 16 * 8),
            passes=self.tile_passes,
        )


def _refuse_mismatch(autoencoder: Autoencoder, statistics: LatentStatistics) -> None:
    for name, here, there in (
        ("latent channels", autoencoder.latent_channels, statistics.channels),
        ("a factor of", autoencoder.factor, statistics.factor),
    ):
        if here != there:
            raise ValueError(
                f"the autoencoder has {name} {here}, its latent statistics {there}: "
                "take the latents.json that stands beside this autoencoder's checkpoint"
            )
    if statistics.fingerprint not in (None, fingerprint(autoencoder)):
        raise ValueError(
            "the latent statistics were measured with other weights than the autoencoder has: "
            "take the latents.json that stands beside this checkpoint, or measure it again"
        )


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
