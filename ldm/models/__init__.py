"""Networks with parameters: autoencoders, critics, denoising backbones."""

from ldm.models.alignment import TokenAlignment
from ldm.models.autoencoder import Autoencoder, KLAutoencoder, Quantised
from ldm.models.autoencoder_losses import L1, L2, Charbonnier, ReconstructionLoss
from ldm.models.autoencoder_quantised import QuantisedAutoencoder
from ldm.models.autoencoder_regularisers import Alignment, Equivariance
from ldm.models.blocks import checkpoint_blocks, compile_blocks
from ldm.models.critic import Adversary, Hinge, NonSaturating, PatchCritic, Vanilla
from ldm.models.critic_loss import CriticLoss
from ldm.models.dc_ae import DeepCompressionAutoencoder
from ldm.models.dit import DiT, MasksPatches
from ldm.models.embeddings import with_sizes
from ldm.models.lora import LowRankAdaptation
from ldm.models.lpips import LPIPS
from ldm.models.mmdit import MMDiT
from ldm.models.perceptual import FeatureDistance, FeatureMaps, PerceptualDistance
from ldm.models.quantizers import FiniteScalarQuantizer, VectorQuantizer
from ldm.models.text_transformer import TextConditioned
from ldm.models.unet import UNet

__all__ = [
    "L1",
    "L2",
    "LPIPS",
    "Adversary",
    "Alignment",
    "Autoencoder",
    "Charbonnier",
    "CriticLoss",
    "DeepCompressionAutoencoder",
    "DiT",
    "Equivariance",
    "FeatureDistance",
    "FeatureMaps",
    "FiniteScalarQuantizer",
    "Hinge",
    "KLAutoencoder",
    "LowRankAdaptation",
    "MMDiT",
    "MasksPatches",
    "NonSaturating",
    "PatchCritic",
    "PerceptualDistance",
    "Quantised",
    "QuantisedAutoencoder",
    "ReconstructionLoss",
    "TextConditioned",
    "TokenAlignment",
    "UNet",
    "Vanilla",
    "VectorQuantizer",
    "checkpoint_blocks",
    "compile_blocks",
    "with_sizes",
]
