"""DeepAR by gluonts, as in its tutorial, on synthetic daily series."""

from typing import Any

import numpy as np
import pandas as pd
from gluonts.dataset.pandas import PandasDataset
from gluonts.torch import DeepAREstimator


def train(callbacks: list[Any]) -> None:
    days = pd.date_range("2024-01-01", periods=200, freq="D")
    noise = np.random.default_rng(1)
    series = {
        f"{item}": pd.Series(5 + np.sin(np.arange(200) * 2 * np.pi / 7 + item) + 0.1 * noise.normal(size=200), days)
        for item in range(10)
    }
    estimator = DeepAREstimator(
        freq="D", prediction_length=7, context_length=14, num_layers=1, hidden_size=16, batch_size=16,
        num_batches_per_epoch=40, lr=1e-2,
        trainer_kwargs={"max_epochs": 3, "accelerator": "cpu", "logger": False, "callbacks": callbacks},
    )  # fmt: skip
    estimator.train(PandasDataset(series))
