"""A frozen autoencoder, the record of what its latents look like, and the affine map between.

The record is a contract: it names the weights that it was measured with, and a codec is not built
from weights and a record that do not belong together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.frozen.codec_statistics import LatentStatistics, fingerprint
from ldm.frozen.codec_tiles import in_tiles
from ldm.models import Autoencoder
from ldm.models.autoencoder import check_image
from ldm.types import Draws, Image, Latent, Posterior

LEAST_TILE = 16  # latent cells


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
