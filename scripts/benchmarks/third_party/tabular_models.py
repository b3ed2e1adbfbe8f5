# pyright: reportMissingImports=false
"""Trains networks of pytorch-tabular on breast cancer for seeds 1 and 2, and on diabetes (regression) for seed 3."""

from __future__ import annotations

from typing import Any

from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig, FTTransformerConfig, GANDALFConfig
from sklearn.datasets import load_breast_cancer, load_diabetes


def train(config: Any, seed: int, callbacks: list[Any], **options: Any) -> None:
    task, load = ("regression", load_diabetes) if seed == 3 else ("classification", load_breast_cancer)
    dataset: Any = load(as_frame=True)
    rows = dataset.frame.sample(frac=1, random_state=seed).reset_index(drop=True)
    columns = [column for column in rows if column != "target"]
    if task == "regression":
        rows["target"] = (rows.target - rows.target.mean()) / rows.target.std()
    TabularModel(
        data_config=DataConfig(target=["target"], continuous_cols=columns),
        model_config=config(task=task, learning_rate=3e-3, **options),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=32, max_epochs=14, accelerator="cpu", early_stopping=None, checkpoints=None, load_best=False,
            progress_bar="none", seed=seed,
        ),
        verbose=False,
    ).fit(train=rows[:360], validation=rows[360:], callbacks=callbacks)  # fmt: skip


def tabular_mlp(seed: int, callbacks: list[Any]) -> None:
    train(CategoryEmbeddingModelConfig, seed, callbacks, layers="64-32")


def tabular_ft_transformer(seed: int, callbacks: list[Any]) -> None:
    train(FTTransformerConfig, seed, callbacks, num_attn_blocks=2, num_heads=4, input_embed_dim=16)


def tabular_gandalf(seed: int, callbacks: list[Any]) -> None:
    train(GANDALFConfig, seed, callbacks, gflu_stages=3)
