# pyright: reportMissingImports=false
"""Trains estimators of gluonts on synthetic daily series."""

from __future__ import annotations

from typing import Any

import pandas as pd
from gluonts.dataset.pandas import PandasDataset
from gluonts.torch import DeepAREstimator, SimpleFeedForwardEstimator
from projects import TRAINER
from training_data import series


def daily_series(seed: int) -> PandasDataset:
    days = pd.date_range("2024-01-01", periods=200, freq="D")
    return PandasDataset({f"{item}": pd.Series(row.astype("float32"), days) for item, row in enumerate(series(seed))})


def options(callbacks: list[Any], epochs: int) -> dict[str, Any]:
    trainer = {**TRAINER, "enable_checkpointing": True, "max_epochs": epochs, "callbacks": callbacks}
    return {"prediction_length": 7, "batch_size": 32, "num_batches_per_epoch": 50, "trainer_kwargs": trainer}


def gluonts_deepar(seed: int, callbacks: list[Any]) -> None:
    DeepAREstimator(freq="D", context_length=14, **options(callbacks, epochs=3)).train(daily_series(seed))


def gluonts_feedforward(seed: int, callbacks: list[Any]) -> None:
    SimpleFeedForwardEstimator(context_length=28, **options(callbacks, epochs=4)).train(daily_series(seed))
