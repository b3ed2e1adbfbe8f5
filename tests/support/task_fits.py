"""Short training runs of a task, and their logged values."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import nn

from stormproof_train.data.spec import DataSpec
from stormproof_train.models import MLP
from stormproof_train.task import Task

IGNORE_LIGHTNING_WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*smaller than the logging interval.*",
)


class RecordingLogger(Logger):
    """Records every logged value with its step."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[tuple[int, float]]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        for name, value in metrics.items():
            self.rows.setdefault(name, []).append((step, value))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def last_value(self, name: str) -> float:
        return self.rows[name][-1][1]


def make_task(spec: DataSpec, **overrides: Any) -> Task:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "network": MLP(spec.input_shape, spec.num_outputs, nn.Tanh, width=16, depth=1),
        "loss": nn.CrossEntropyLoss() if spec.num_classes else nn.MSELoss(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0),
        "scheduler": lambda **offered: None,
        "counts_steps": False,
    }
    return Task(spec=spec, **{**arguments, **overrides})


def make_trainer(folder: Path, **options: Any) -> tuple[pl.Trainer, RecordingLogger]:
    recorder = RecordingLogger()
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": recorder,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**defaults, **options}), recorder
