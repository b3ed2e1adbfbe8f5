# pyright: reportMissingImports=false
"""Trains networks of pytorch-forecasting on synthetic series."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from lightning import pytorch as pl
from projects import TRAINER
from pytorch_forecasting import DeepAR, NBeats, QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet
from training_data import series

COVARIATES: dict[str, Any] = {"static_categoricals": ["series"], "time_varying_known_reals": ["time_idx"]}


def train(network: Any, data_options: dict[str, Any], seed: int, callbacks: list[Any], **options: Any) -> None:
    frames = [
        pd.DataFrame({"series": f"{item}", "time_idx": np.arange(100), "value": row})
        for item, row in enumerate(series(seed, length=100))
    ]
    data = pd.concat(frames, ignore_index=True)
    training = TimeSeriesDataSet(
        data[data.time_idx < 86], time_idx="time_idx", target="value", group_ids=["series"], min_encoder_length=28,
        max_encoder_length=28, min_prediction_length=7, max_prediction_length=7, time_varying_unknown_reals=["value"],
        **data_options,
    )  # fmt: skip
    validation = TimeSeriesDataSet.from_dataset(training, data, min_prediction_idx=86)
    model = network.from_dataset(training, log_interval=-1, **options)
    loaders = [training.to_dataloader(train=True, batch_size=32), validation.to_dataloader(train=False, batch_size=64)]
    epochs = 4 if network is TemporalFusionTransformer else 6
    limits: dict[str, Any] = {"max_epochs": epochs, "limit_train_batches": 30, "gradient_clip_val": 0.1}
    pl.Trainer(**TRAINER, **limits, callbacks=callbacks).fit(model, *loaders)


def pytorch_forecasting_nbeats(seed: int, callbacks: list[Any]) -> None:
    options = {"learning_rate": 3e-3, "widths": [32, 128], "backcast_loss_ratio": 0.1}
    train(NBeats, {"add_relative_time_idx": False}, seed, callbacks, **options)


def pytorch_forecasting_deepar(seed: int, callbacks: list[Any]) -> None:
    train(DeepAR, COVARIATES, seed, callbacks, learning_rate=1e-2, hidden_size=24, rnn_layers=1)


def pytorch_forecasting_tft(seed: int, callbacks: list[Any]) -> None:
    sizes = {"hidden_size": 16, "attention_head_size": 2, "hidden_continuous_size": 8, "dropout": 0.1}
    train(TemporalFusionTransformer, COVARIATES, seed, callbacks, learning_rate=1e-2, loss=QuantileLoss(), **sizes)
