"""Networks that are used and not trained. None is an nn.Module attribute of what is."""

from ldm.frozen.codec import LatentCodec, LatentStatistics, fingerprint, latent_statistics

__all__ = ["LatentCodec", "LatentStatistics", "fingerprint", "latent_statistics"]
