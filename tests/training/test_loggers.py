"""What TensorBoard shows of a run besides curves, and what other loggers are given."""

import json
import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from ldm.data import ShardData
from ldm.runs.folder import RunFolder, open_run
from ldm.training.data import PictureDataModule
from ldm.training.loggers import JsonLines, StepAxis, TensorBoard, albums, introduce
from ldm.training.loggers_elsewhere import MLflow, WeightsAndBiases

CONFIG = {"name": "run", "seed": 0, "module": {"optimizer": {"lr": 1e-3, "betas": [0.9, 0.99]}}}


def trainer(*loggers):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu", devices=1, logger=list(loggers), enable_model_summary=False, **quiet
    )


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    open_run(folder, CONFIG, ["train.py", "experiment=x y", "seed=0"])
    return folder


def test_what_is_known_of_the_step_of_a_checkpoint_is_recorded_once(folder):
    path = folder.path / "metrics.jsonl"
    earlier = [
        {"step": 6, "val/loss": 3.0},
        {"step": 7, "val/loss": 2.0},
        {"step": 8, "train/x": 1},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in earlier) + '{"step": 8, "tra')
    axis = StepAxis()
    axis._trainer = SimpleNamespace(global_step=7)
    lines = JsonLines(path, axis, after=7)
    lines.log_metrics({"val/loss": 2.0, "epoch": 0}, 6)  # the validation is repeated
    lines.log_metrics({"sample/x": 5.0, "val/loss": 2.0}, 6)  # and goes further than before
    axis._trainer.global_step = 8
    lines.log_metrics({"val/loss": 1.0}, 7)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        *earlier[:2],
        {"step": 7, "sample/x": 5.0},
        {"step": 8, "val/loss": 1.0},
    ]


def _fits(chart, name):
    """As TensorBoard's front end does: a regular expression from the beginning."""
    return any(re.match(tag, name) for tag in chart.multiline.tag)


def test_tensorboard_tells_settings_origin_and_what_matters(folder):
    axis = StepAxis()
    logger = TensorBoard(folder.path / "tensorboard", axis)
    lines = JsonLines(folder.path / "metrics.jsonl", axis)
    run = trainer(logger, lines)
    introduce(run, folder)
    for one in run.loggers:
        one.log_metrics({"train/loss": 2.0, "val/psnr": 20.0, "grad/network": 1.0}, 0)
    (album,) = albums(run)
    album.show("samples", Image.new("RGB", (8, 8), "red"), 1)
    logger.finalize("success")
    logger.finalize("success")  # Lightning may ask twice
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()

    def text(name):
        (event,) = events.Tensors(f"{name}/text_summary")
        return event.tensor_proto.string_val[0].decode()

    assert "lr: 0.001" in text("run/config")
    assert "train.py 'experiment=x y' seed=0" in text("run/command")
    assert f"commit {folder.starts()[0]['commit'] or '(none)'}" in text("run/git")
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert next(category.title for category in layout.category) == "what matters"
    assert "train/loss_mean" in layout.category[0].chart[0].multiline.tag
    plots = [
        [chart.title for chart in layout.category[0].chart if _fits(chart, f"sample/{name}")]
        for name in ("fd_clip", "fid", "kid_inception", "clip_score", "recall@5", "memorisation")
    ]
    distances, score, shares = (["samples: " + t] for t in ("distances", "CLIP score", "shares"))
    assert plots == [distances, distances, distances, score, shares, shares]
    begun = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    values = begun.session_start_info.hparams
    assert values["module.optimizer.lr"].number_value == 1e-3
    assert values["module.optimizer.betas"].string_value == "[0.9, 0.99]"
    judged = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    )
    assert [info.name.tag for info in judged.experiment.metric_infos] == ["val/psnr"]
    assert [event.value for event in events.Scalars("val/psnr")] == [20.0]  # not written twice
    assert json.loads((folder.path / "metrics.jsonl").read_text())["val/psnr"] == 20.0


class Recorder:
    """Stands for a service: remembers every call."""

    def __init__(self):
        self.calls = []

    def method(self, name):
        return lambda of_logger, *given, **named: self.calls.append((name, given, named))

    def __getattr__(self, name):
        return lambda *given, **named: self.calls.append((name, given, named))


def test_weights_and_biases_get_everything_on_the_runs_axis(folder, monkeypatch):
    told, service = {}, Recorder()
    monkeypatch.setattr(WandbLogger, "__init__", lambda self, **given: told.update(given))
    for name in ("log_metrics", "log_hyperparams", "log_image", "log_text"):
        monkeypatch.setattr(WandbLogger, name, service.method(name))
    place = {"project": "ldm", "name": "run", "folder": str(folder.path)}
    logger = WeightsAndBiases(**place, axis=StepAxis(), offline=True)
    assert (told["version"], told["offline"], told["save_dir"]) == ("run", True, str(folder.path))
    run = trainer()
    run.loggers = [logger]
    introduce(run, folder)
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, 7)
    (album,) = albums(run)
    album.show("samples", Image.new("RGB", (8, 8)), 3)
    names = [name for name, _, _ in service.calls]
    assert names == ["log_hyperparams", *["log_text"] * 3, "log_metrics", "log_image"]
    assert service.calls[0][1][0]["module.optimizer.lr"] == 1e-3
    assert service.calls[4][1] == ({"train/loss": 1.0}, 0)  # the axis, not Lightning's count
    assert service.calls[5][1][0] == "samples"


def test_mlflow_goes_on_under_the_same_id(folder, monkeypatch):
    told, service = [], Recorder()
    monkeypatch.setattr(MLFlowLogger, "__init__", lambda self, **given: told.append(given))
    monkeypatch.setattr(MLFlowLogger, "run_id", "abc123")
    monkeypatch.setattr(MLFlowLogger, "experiment", service)
    for name in ("log_metrics", "log_hyperparams"):
        monkeypatch.setattr(MLFlowLogger, name, service.method(name))
    place = {"experiment": "ldm", "name": "run", "folder": str(folder.path), "address": "x"}
    run = trainer()
    for known in (None, "abc123"):
        run.loggers = [MLflow(**place, axis=StepAxis())]
        assert told[-1]["run_id"] == known
        introduce(run, folder)
    run.loggers[0].log_metrics({"sample/recall@5": 0.5}, 7)
    albums(run)[0].show("samples", Image.new("RGB", (8, 8)), 3)
    names = [name for name, _, _ in service.calls]
    assert names == ["log_hyperparams", *["log_text"] * 6, "log_metrics", "log_image"]
    assert service.calls[-2][1] == ({"sample/recall_at_5": 0.5}, 0)
    assert service.calls[-1][2] == {"artifact_file": "samples/00000003.png"}


def test_mlflows_files_lie_beside_its_database_wherever_one_types(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(MLFlowLogger, "__init__", lambda self, **given: told.append(given))
    place = {"experiment": "ldm", "name": "run", "folder": str(tmp_path), "axis": StepAxis()}
    monkeypatch.chdir(tmp_path)
    MLflow(**place, address="sqlite:///runs/mlflow.db")
    MLflow(**place, address="http://server:5000")
    assert told[0]["artifact_location"] == (tmp_path / "runs" / "mlruns").as_uri()
    assert told[1]["artifact_location"] is None  # the server's own


def test_overfitting_sees_the_first_samples_only():
    data = ShardData("asset:emoji/val-*.tar", 64)
    numbers = {"global_batch": 8, "accumulate": 1, "seed": 0}
    batches = iter(PictureDataModule(data, data, **numbers, overfit=3).train_dataloader())
    seen = [next(batches) for _ in range(3)]
    first = data.read(_rows(range(3)))[0]["key"]
    assert [key for batch in seen for key in batch["key"]] == (first * 8)
    assert [batch["position"] for batch in seen] == [0, 8, 16]  # so that every step has its noise
    assert torch.equal(seen[0]["image"][0], seen[0]["image"][3])


def _rows(samples):
    import numpy as np

    from ldm.data.order import Rows

    numbers = np.array(samples, np.int64)
    return Rows(numbers, numbers, 0)


@pytest.mark.slow
def test_weights_and_biases_offline_for_real(folder):
    """Record: docs/configuration.md, Loggers."""
    pytest.importorskip("wandb")
    place = {"project": "ldm", "name": "run", "folder": str(folder.path)}
    logger = WeightsAndBiases(**place, axis=StepAxis(), offline=True)
    run = trainer(logger)
    introduce(run, folder)
    logger.log_metrics({"train/loss": 1.0}, 0)
    albums(run)[0].show("samples", Image.new("RGB", (8, 8)), 0)
    logger.experiment.finish()
    (kept,) = (folder.path / "wandb").glob("offline-run-*")
    assert next(iter(kept.glob("*.wandb"))).stat().st_size > 1000
    assert list(kept.rglob("*.png"))
