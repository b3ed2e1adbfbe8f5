"""Minimal training runs of a few steps."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

LIGHTNING_WARNING_FILTERS = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),  # on newer torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),
]
LIGHTNING_PYTORCH = importlib.import_module("lightning.pytorch")  # the other package name of Lightning
BOTH_PACKAGES = pytest.mark.parametrize(
    "lightning", [pl, LIGHTNING_PYTORCH], ids=["pytorch_lightning", "lightning.pytorch"]
)


class IndexDataset(Dataset[torch.Tensor]):
    """``count`` samples of two numbers. Calls ``on_fetch`` with each fetched index."""

    def __init__(self, count: int = 12, on_fetch: Callable[[int], Any] = lambda _: None) -> None:
        self.count, self.on_fetch = count, on_fetch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        self.on_fetch(index)
        return torch.tensor([index / self.count, 1.0])


class IndexStream(IterableDataset[torch.Tensor]):
    """The same samples as an iterable without a length."""

    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return iter([torch.tensor([index / self.count, 1.0]) for index in range(self.count)])


def make_loader(count: int = 12, **options: Any) -> DataLoader[torch.Tensor]:
    """Returns a loader of 6 batches of two samples."""
    return DataLoader(IndexDataset(count), **{"batch_size": 2, **options})


class RegressionModule:
    """Regression to zero. A mixin for the module of either Lightning package."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)  # type: ignore[attr-defined]


class ValidatedRegressionModule(RegressionModule):
    """RegressionModule with a validation loss."""

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch).square().mean())  # type: ignore[attr-defined]


def make_module(lightning: Any = pl, kind: type = RegressionModule) -> Any:
    """Returns a module of ``kind`` for a trainer of ``lightning``."""
    return type(kind.__name__, (kind, lightning.LightningModule), {})()


class RowsLogger(Logger):
    """A logger that records values with their steps."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, {name: float(value) for name, value in metrics.items()}))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def logged_steps(self, name: str) -> list[int | None]:
        return [step for step, metrics in self.rows if name in metrics]


def make_trainer(lightning: Any = pl, **options: Any) -> Any:
    """Returns a trainer of one epoch on the CPU without a progress bar."""
    defaults = {
        "max_epochs": 1,
        "logger": False,
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return lightning.Trainer(**{**defaults, **options})
