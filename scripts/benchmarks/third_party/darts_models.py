# pyright: reportMissingImports=false
"""Trains forecasting models of darts on synthetic series."""

from __future__ import annotations

from typing import Any

from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.models import NBEATSModel, TCNModel, TransformerModel
from projects import TRAINER
from training_data import series


def train(model: Any, seed: int, callbacks: list[Any], **options: Any) -> None:
    rows = Scaler().fit_transform([TimeSeries.from_values(row.astype("float32")) for row in series(seed, 3, 250)])
    model(
        input_chunk_length=28, output_chunk_length=7, n_epochs=12, batch_size=32, random_state=seed,
        pl_trainer_kwargs={**TRAINER, "callbacks": callbacks}, **options,
    ).fit([row[:-60] for row in rows], val_series=[row[-60:] for row in rows])  # fmt: skip


def darts_nbeats(seed: int, callbacks: list[Any]) -> None:
    train(NBEATSModel, seed, callbacks, num_layers=2, layer_widths=64)


def darts_tcn(seed: int, callbacks: list[Any]) -> None:
    train(TCNModel, seed, callbacks, dropout=0.1, num_filters=8)


def darts_transformer(seed: int, callbacks: list[Any]) -> None:
    train(TransformerModel, seed, callbacks, d_model=16, nhead=4, dim_feedforward=64)
