"""N-BEATS by darts, as in its README, on a synthetic series."""

from typing import Any

import numpy as np
from darts.models import NBEATSModel
from darts.utils.timeseries_generation import gaussian_timeseries, sine_timeseries


def train(callbacks: list[Any]) -> None:
    np.random.seed(1)  # noqa: NPY002  # of which darts draws
    series = (sine_timeseries(length=300, value_frequency=0.05) + 0.1 * gaussian_timeseries(length=300)).astype(
        "float32"
    )
    model = NBEATSModel(
        input_chunk_length=24, output_chunk_length=12, n_epochs=12, batch_size=16, random_state=1, num_layers=2,
        layer_widths=64,
        pl_trainer_kwargs={"accelerator": "cpu", "logger": False, "callbacks": callbacks},
    )  # fmt: skip
    model.fit(series[:-60], val_series=series[-60:])
