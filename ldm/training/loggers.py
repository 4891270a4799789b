"""Where numbers go: TensorBoard and the run's own record, both on one axis.

The axis is the optimizer step that was just finished, counted from 1. Lightning's own count is one
behind, and validations and samples would stand one step beside the training that they belong to.
"""

import json
import math
import shlex
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image as Pictures
from torch.utils.tensorboard.summary import hparams
from torchvision.transforms.functional import pil_to_tensor

from ldm.files import write_text
from ldm.runs.folder import RunFolder, flatten

_DIFF = 20_000  # characters of the uncommitted changes that are told
_FINAL = ("val/", "sample/", "reconstruction/")  # what a run is judged by
_DISTANCES = "(fd_|s?fid|kid|cmmd|frechet|lpips).*"
_SHARES = "(recall|precision|coverage|density|memorisation|diversity).*"
# TensorBoard's tab "custom scalars", a plot a scale: what matters, then whether it is healthy.
_LAYOUT = {
    "what matters": {
        "loss": ["Multiline", ["train/loss_mean", "val/loss"]],
        "samples: distances": ["Multiline", [f"sample/{_DISTANCES}"]],
        "samples: CLIP score": ["Multiline", ["sample/clip_score"]],
        "samples: shares": ["Multiline", [f"sample/{_SHARES}"]],
        "reconstructions: distances": ["Multiline", [f"reconstruction/{_DISTANCES}"]],
        "reconstructions: PSNR in dB": ["Multiline", ["val/psnr"]],
    },
    "health": {
        "gradient norms": ["Multiline", ["grad/.*"]],
        "learning rate": ["Multiline", ["train/lr"]],
        "largest loss": ["Multiline", ["train/loss_max"]],
    },
    "machine": {
        "images per second": ["Multiline", ["time/images_per_second"]],
        "shares of the time": ["Multiline", ["time/goodput", "time/data_wait_share"]],
        "memory in GiB": ["Multiline", ["memory/.*"]],
    },
}


@runtime_checkable
class Album(Protocol):
    """A logger that takes more than numbers."""

    def show(self, name: str, picture: Pictures.Image, step: int) -> None:
        """A picture of this step."""

    def tell(self, name: str, text: str, step: int) -> None:
        """A text of this step."""


def albums(trainer: L.Trainer) -> list[Album]:
    """Those of the run's loggers that take pictures; none on a rank that does not write."""
    return [one for one in trainer.loggers if isinstance(one, Album) and trainer.is_global_zero]


def introduce(trainer: L.Trainer, folder: RunFolder) -> None:
    """Tells every logger the settings, and those that take texts where the run comes from."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        logger.log_hyperparams(flatten(folder.config()))
    for album in albums(trainer):
        for name, text in _origin(folder).items():
            album.tell(f"run/{name}", text, 0)


def _origin(folder: RunFolder) -> dict[str, str]:
    """In words, as Markdown."""
    start = folder.starts()[-1]
    diff = folder.path / "uncommitted.diff"
    changed = diff.read_text(errors="replace")[:_DIFF] if diff.is_file() else ""
    return {
        "config": f"```yaml\n{folder.config_file.read_text()}```",
        "command": f"```\n{shlex.join(start['command'])}\n```\non {start['host']}",
        "git": f"commit {start['commit'] or '(none)'}\n\n```diff\n{changed}\n```",
    }


class StepAxis(L.Callback):
    """Tells loggers the step, whatever Lightning hands them."""

    def __init__(self) -> None:
        self._trainer: L.Trainer | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Remember whose step it is."""
        self._trainer = trainer

    @property
    def step(self) -> int:
        """Optimizer steps finished, of the whole run."""
        return 0 if self._trainer is None else self._trainer.global_step


class TensorBoard(TensorBoardLogger):
    """Event files in `folder`. With `after`, readers forget what an earlier process wrote about
    steps behind it."""

    def __init__(self, folder: Path, axis: StepAxis, after: int | None = None) -> None:
        purge: dict[str, Any] = {} if after is None else {"purge_step": after + 1}
        super().__init__(str(folder.parent), name="", version=folder.name, **purge)
        self.axis = axis
        self._settings: dict[str, Any] = {}
        self._measured: set[str] = set()

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """On the run's axis; Lightning's epoch is left out, for nothing here has epochs."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self._measured.update(name for name in values if name.startswith(_FINAL))
        super().log_metrics(values, self.axis.step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Remembered for the HParams page, which is written at the end: it names the metrics. The
        first page's layout is written now."""
        self._settings = params
        self.experiment.add_custom_scalars(_LAYOUT)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Also after an error: the HParams page, whose metrics are the newest of each name."""
        if self._settings and self._measured:
            values = {
                k: v if isinstance(v, bool | int | float) else str(v)
                for k, v in self._settings.items()
            }
            for summary in hparams(values, dict.fromkeys(sorted(self._measured), 0.0)):  # type: ignore[no-untyped-call]
                self.experiment._get_file_writer().add_summary(summary)
            self._measured.clear()
        super().finalize(status)

    @rank_zero_only
    def show(self, name: str, picture: Pictures.Image, step: int) -> None:
        """Among the images."""
        self.experiment.add_image(name, pil_to_tensor(picture), step)

    @rank_zero_only
    def tell(self, name: str, text: str, step: int) -> None:
        """Among the texts, as Markdown."""
        self.experiment.add_text(name, text, step)


class JsonLines(Logger):
    """Appends `{"step": ..., name: value, ...}` to `path`; a non-finite value is written as a
    string, so that every line is valid JSON. What stands behind step `after` is cut off, and what
    is known of that step is not told again: a validation that was broken off is repeated there."""

    def __init__(self, path: Path, axis: StepAxis, after: int | None = None) -> None:
        super().__init__()
        self.path, self.axis = path, axis
        self._after, self._known = after, set[str]()
        if after is not None and path.exists():
            self._cut(after)

    @property
    def name(self) -> str:
        """Part of Lightning's interface."""
        return "jsonl"

    @property
    def version(self) -> str:
        """Part of Lightning's interface."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any) -> None:
        """The configuration stands in the run's config.yaml; nothing is written twice."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """One line, if there is anything new."""
        now = self.axis.step
        known = self._known if now == self._after else ()
        new = {k: v for k, v in metrics.items() if k != "epoch" and k not in known}
        values = {k: v if math.isfinite(v) else str(v) for k, v in new.items()}
        if values:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": now, **values}) + "\n")

    @rank_zero_only
    def _cut(self, after: int) -> None:
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                told = json.loads(line)
            except ValueError:  # a killed process wrote half of it
                continue
            if told["step"] <= after:
                kept.append(line + "\n")
            if told["step"] == after:
                self._known |= set(told)
        write_text(self.path, "".join(kept))
