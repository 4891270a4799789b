"""What happens beside the training step."""

from ldm.training.callbacks.blocks import Blocks
from ldm.training.callbacks.checkpointing import (
    Checkpointing,
    Stopped,
    UnmeasuredError,
    WriteError,
)
from ldm.training.callbacks.pictures import Reconstructions, SampleQuality
from ldm.training.callbacks.progress import StepProgress, Work
from ldm.training.callbacks.record import StepRecord
from ldm.training.callbacks.time_bins import LossByTime
from ldm.training.callbacks.watchdog import Watchdog

__all__ = [
    "Blocks",
    "Checkpointing",
    "LossByTime",
    "Reconstructions",
    "SampleQuality",
    "StepProgress",
    "StepRecord",
    "Stopped",
    "UnmeasuredError",
    "Watchdog",
    "Work",
    "WriteError",
]
