"""What happens beside the training step."""

from ldm.training.callbacks.checkpointing import Checkpointing
from ldm.training.callbacks.pictures import Reconstructions, SampleQuality
from ldm.training.callbacks.progress import StepProgress

__all__ = ["Checkpointing", "Reconstructions", "SampleQuality", "StepProgress"]
