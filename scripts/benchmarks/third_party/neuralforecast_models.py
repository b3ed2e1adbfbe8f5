# pyright: reportMissingImports=false
"""Trains models of neuralforecast on its airline passengers for seeds 1 and 2, and on synthetic series for seed 3."""

from __future__ import annotations

from typing import Any

import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS, PatchTST, TSMixer
from neuralforecast.utils import AirPassengersPanel
from projects import TRAINER
from training_data import series


def data(seed: int) -> pd.DataFrame:
    if seed != 3:
        return AirPassengersPanel[["unique_id", "ds", "y"]]
    days = pd.date_range("2024-01-01", periods=200, freq="D")
    frames = [pd.DataFrame({"unique_id": f"{i}", "ds": days, "y": row}) for i, row in enumerate(series(seed))]
    return pd.concat(frames, ignore_index=True)


def train(model: Any, seed: int, callbacks: list[Any], **options: Any) -> None:
    network = model(
        h=12, input_size=24, max_steps=200, random_seed=seed, scaler_type="standard", windows_batch_size=128,
        val_check_steps=50, callbacks=callbacks, **TRAINER, **options,
    )  # fmt: skip
    NeuralForecast([network], freq="D" if seed == 3 else "ME").fit(df=data(seed), val_size=12)


def neuralforecast_nhits(seed: int, callbacks: list[Any]) -> None:
    train(NHITS, seed, callbacks)


def neuralforecast_tsmixer(seed: int, callbacks: list[Any]) -> None:
    train(TSMixer, seed, callbacks, n_series=data(seed).unique_id.nunique())


def neuralforecast_patchtst(seed: int, callbacks: list[Any]) -> None:
    sizes = {"hidden_size": 32, "n_heads": 4, "encoder_layers": 2, "linear_hidden_size": 64, "patch_len": 8}
    train(PatchTST, seed, callbacks, **sizes)
