"""The numbers by which an autoencoder is judged in validation, exact over batches and ranks."""

from jaxtyping import Bool
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from ldm.metrics.latents import ChannelKL, CodebookUse, HighFrequencyShare
from ldm.metrics.means import PictureMean
from ldm.metrics.reconstruction import PSNR, SSIM
from ldm.models.autoencoder import Autoencoder, Quantised
from ldm.models.autoencoder_losses import ReconstructionTerms, gaussian_kl
from ldm.models.critic_loss import Opinion
from ldm.types import Image, Posterior


class Watched(nn.Module):
    """Metrics of pictures and of latents; a module, so that they move with the training's device.
    They keep nothing in checkpoints."""

    def __init__(self, autoencoder: Autoencoder, *, perceptual: bool) -> None:
        super().__init__()
        channels = autoencoder.latent_channels
        self.loss = PictureMean()
        self.perceptual = PictureMean() if perceptual else None
        self.psnr, self.ssim = PSNR(), SSIM()
        self.high_frequencies = HighFrequencyShare(channels)
        self.kl = ChannelKL(channels)
        self.judged = MetricCollection(
            {name: PictureMean() for name in Opinion._fields}, compute_groups=False
        )
        self.joined = False  # the critic, on all ranks alike
        self.codes = CodebookUse(autoencoder.entries) if autoencoder.entries else None

    def update(
        self,
        image: Image,
        made: Image,
        posterior: Posterior,
        quantised: Quantised,
        terms: ReconstructionTerms,
        valid: Bool[Tensor, "b"],
    ) -> None:
        """Takes in a batch's pictures, without those that only fill it up: not `valid`."""
        self.loss.update(terms.total[valid])
        if self.perceptual is not None:
            self.perceptual.update(terms.perceptual[valid])
        self.psnr.update(made[valid], image[valid])
        self.ssim.update(made[valid], image[valid])
        self.high_frequencies.update(posterior.mean[valid])
        if self.codes is None:
            self.kl.update(gaussian_kl(posterior)[valid])
        elif quantised.codes is not None:
            self.codes.update(quantised.codes[valid])

    def judge(self, opinion: Opinion, valid: Bool[Tensor, "b"]) -> None:
        """Takes in what a critic that has joined thinks of a batch."""
        self.joined = True
        for name, numbers in opinion._asdict().items():
            self.judged[name].update(numbers[valid])

    def compute(self) -> dict[str, Tensor]:
        """The numbers by name; every rank must call it."""
        found = {
            "loss": self.loss.compute(),
            "psnr": self.psnr.compute(),
            "ssim": self.ssim.compute(),
            "latent/high_frequencies": self.high_frequencies.compute(),
        }
        if self.perceptual is not None:
            found["perceptual"] = self.perceptual.compute()
        if self.joined:
            found |= {f"critic/{name}": mean for name, mean in self.judged.compute().items()}
        if self.codes is not None:
            return found | {f"codes/{name}": value for name, value in self.codes.compute().items()}
        nats = self.kl.compute()
        if not bool(nats.any()):
            return found  # an encoder that gives no deviation has no KL
        found["latent/active_channels"] = (nats > 0.01).sum().double()
        for channel, value in enumerate(nats):
            found[f"latent/kl_{channel}"] = value
        return found

    def reset(self) -> None:
        """Forgets all batches."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()
        self.joined = False
