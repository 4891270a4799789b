"""What happens beside the training step."""

from ldm.training.callbacks.checkpointing import Checkpointing, Stopped, WriteError
from ldm.training.callbacks.pictures import Reconstructions, SampleQuality
from ldm.training.callbacks.progress import StepProgress
from ldm.training.callbacks.record import StepRecord

__all__ = [
    "Checkpointing",
    "Reconstructions",
    "SampleQuality",
    "StepProgress",
    "StepRecord",
    "Stopped",
    "WriteError",
]
