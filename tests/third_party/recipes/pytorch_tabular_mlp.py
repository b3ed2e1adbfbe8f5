"""A category embedding network by pytorch-tabular, as in its README, on synthetic rows."""

from typing import Any

import numpy as np
import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig


def train(callbacks: list[Any]) -> None:
    random = np.random.default_rng(1)
    rows = pd.DataFrame({"a": random.normal(size=800), "b": random.normal(size=800), "c": random.integers(0, 4, 800)})
    rows["target"] = ((rows.a + rows.b * (rows.c - 1.5)) > 0).astype(int)
    model = TabularModel(
        data_config=DataConfig(target=["target"], continuous_cols=["a", "b"], categorical_cols=["c"]),
        model_config=CategoryEmbeddingModelConfig(task="classification", layers="32-16", learning_rate=1e-2),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=32, max_epochs=8, accelerator="cpu", early_stopping=None, checkpoints=None, load_best=False,
            progress_bar="none",
        ),
        verbose=False,
    )  # fmt: skip
    model.fit(train=rows[:600], validation=rows[600:], callbacks=callbacks)
