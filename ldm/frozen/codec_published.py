"""What the published autoencoders' latents are multiplied and shifted by, as latent statistics.

Their authors give one scale and one shift for all channels: normalised = (latent - shift) * scale.
The numbers are those of the models' own configuration files (`scaling_factor`, `shift_factor`);
of DC-AE trained on ImageNet, those of its authors' page (mit-han-lab/efficientvit, its
applications/dc_ae).
"""

from ldm.frozen.codec_statistics import LatentStatistics


def _published(
    channels: int, scale: float, shift: float = 0.0, factor: int = 8
) -> LatentStatistics:
    return LatentStatistics(
        (shift,) * channels, (1 / scale,) * channels, factor=factor, fingerprint=None
    )


PUBLISHED = {
    "sd": _published(4, 0.18215),  # Stable Diffusion 1 and 2
    "sdxl": _published(4, 0.13025),
    "sd3": _published(16, 1.5305, 0.0609),
    "flux": _published(16, 0.3611, 0.1159),
    "dc_ae_f32c32_in": _published(32, 0.3189, factor=32),
    "dc_ae_f64c128_in": _published(128, 0.2889, factor=64),
    "dc_ae_f32c32_sana": _published(32, 0.41407, factor=32),
}
