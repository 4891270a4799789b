"""Networks that are used and not trained. None is an nn.Module attribute of what is."""

from ldm.frozen.codec import LatentCodec
from ldm.frozen.codec_published import PUBLISHED
from ldm.frozen.codec_statistics import LatentStatistics, fingerprint, latent_statistics

__all__ = ["PUBLISHED", "LatentCodec", "LatentStatistics", "fingerprint", "latent_statistics"]
