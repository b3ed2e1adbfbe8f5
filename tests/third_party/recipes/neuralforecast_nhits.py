"""NHITS by neuralforecast, as in its README, on the passengers that it bundles."""

from typing import Any

from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS
from neuralforecast.utils import AirPassengersDF


def train(callbacks: list[Any]) -> None:
    model = NHITS(
        input_size=24, h=12, max_steps=150, scaler_type="standard", accelerator="cpu", logger=False, callbacks=callbacks
    )
    NeuralForecast(models=[model], freq="ME").fit(df=AirPassengersDF, val_size=24)
