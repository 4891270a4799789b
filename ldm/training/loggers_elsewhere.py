"""Other places for a run's numbers and pictures: Lightning's loggers, on the run's own axis.

Their packages are not among the project's: `ldm check` refuses a run that asks for a missing one.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image as Pictures

from ldm.training.loggers import StepAxis


class WeightsAndBiases(WandbLogger):
    """A run `name` in `project`; its files lie in `folder`. `offline` sends nothing (`wandb sync`
    does it later). A run that is started again goes on under the same name."""

    def __init__(
        self, *, project: str, name: str, folder: str, axis: StepAxis, offline: bool = False
    ) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        super().__init__(name=name, project=project, save_dir=folder, offline=offline, version=name)
        self.axis = axis

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Numbers at the step that was just finished."""
        super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, self.axis.step)

    @rank_zero_only
    def show(self, name: str, picture: Pictures.Image, step: int) -> None:
        """A picture among the run's media."""
        self.log_image(name, [picture], step)

    @rank_zero_only
    def tell(self, name: str, text: str, step: int) -> None:
        """A text, as a table of one cell."""
        self.log_text(name, ["text"], [[text]], step=step)


class MLflow(MLFlowLogger):
    """A run `name` of `experiment` at `address`: a server, or a file as `sqlite:///PATH`, with
    pictures and texts in `mlruns/` beside it. The run's id is kept in `folder`, so that a run that
    is started again goes on there."""

    def __init__(
        self, *, experiment: str, name: str, folder: str, axis: StepAxis, address: str
    ) -> None:
        record = Path(folder) / "mlflow.txt"
        known = record.read_text().strip() if record.is_file() else None
        file = address.removeprefix("sqlite:///")
        # Of itself MLflow would put them into the folder that the command was typed in.
        beside = None if file == address else (Path(file).absolute().parent / "mlruns").as_uri()
        super().__init__(
            experiment_name=experiment,
            run_name=name,
            tracking_uri=address,
            run_id=known,
            artifact_location=beside,
        )
        self.axis, self._record = axis, record

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """The settings, once; from here on the run has an id."""
        if not self._record.is_file():
            super().log_hyperparams(params)
            self._record.parent.mkdir(parents=True, exist_ok=True)
            self._record.write_text(f"{self.run_id}\n")

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Numbers at the step that was just finished; MLflow's names have no "@"."""
        named = {k.replace("@", "_at_"): v for k, v in metrics.items() if k != "epoch"}
        super().log_metrics(named, self.axis.step)

    @rank_zero_only
    def show(self, name: str, picture: Pictures.Image, step: int) -> None:
        """A picture among the run's artifacts."""
        self.experiment.log_image(self.run_id, picture, artifact_file=f"{name}/{step:08d}.png")

    @rank_zero_only
    def tell(self, name: str, text: str, step: int) -> None:
        """A text among the run's artifacts."""
        self.experiment.log_text(self.run_id, text, artifact_file=f"{name}/{step:08d}.txt")
