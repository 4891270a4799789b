"""Networks that are used and not trained. None is an nn.Module attribute of what is."""

from ldm.frozen.codec import LatentCodec, LatentStatistics, fingerprint, latent_statistics
from ldm.frozen.codec_published import PUBLISHED

__all__ = ["PUBLISHED", "LatentCodec", "LatentStatistics", "fingerprint", "latent_statistics"]
