"""N-BEATS by pytorch-forecasting, as in its tutorial, on synthetic series."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from pytorch_forecasting import NBeats, TimeSeriesDataSet


def train(callbacks: list[Any]) -> None:
    steps = np.arange(100)
    noise = np.random.default_rng(1)
    frames = [
        pd.DataFrame({
            "series": item, "time_idx": steps, "value": 2 + np.sin(steps / 5 + item) + 0.05 * noise.normal(size=100)
        })
        for item in range(10)
    ]  # fmt: skip
    data = pd.concat(frames, ignore_index=True).astype({"series": str})
    options = {
        "min_encoder_length": 20,
        "max_encoder_length": 20,
        "max_prediction_length": 5,
        "min_prediction_length": 5,
    }
    training = TimeSeriesDataSet(
        data[data.time_idx < 80], time_idx="time_idx", target="value", group_ids=["series"],
        time_varying_unknown_reals=["value"], add_relative_time_idx=False, **options,
    )  # fmt: skip
    validation = TimeSeriesDataSet.from_dataset(training, data, min_prediction_idx=80)
    network = NBeats.from_dataset(
        training, learning_rate=1e-3, log_interval=-1, widths=[32, 128], backcast_loss_ratio=0.1
    )
    trainer = pl.Trainer(
        max_epochs=6,
        limit_train_batches=30,
        accelerator="cpu",
        logger=False,
        gradient_clip_val=0.01,
        callbacks=callbacks,
    )
    loaders = [training.to_dataloader(train=True, batch_size=16), validation.to_dataloader(train=False, batch_size=64)]
    trainer.fit(network, *loaders)
