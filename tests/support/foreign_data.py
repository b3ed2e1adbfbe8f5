"""A data module that does not use this project."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Foreign(pl.LightningDataModule):
    """Batches of four from tensors. Validation uses the same tensors, unless others are given."""

    def __init__(self, *tensors: torch.Tensor, validation: Any = None, **attributes: Any) -> None:
        super().__init__()
        self.tensors = tensors
        self.validation = validation or tensors
        self.stages: list[str] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def prepare_data(self) -> None:
        self.stages.append("prepare")

    def setup(self, stage: str) -> None:
        self.stages.append(stage)

    def train_dataloader(self) -> DataLoader:
        dataset: Any = TensorDataset(*self.tensors)
        if hasattr(self, "classes"):
            dataset.classes = getattr(self, "classes")  # noqa: B009 (given to the constructor)
        shuffled = len(dataset) > 0
        return DataLoader(dataset, batch_size=4, shuffle=shuffled)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*self.validation), batch_size=4)

    def test_dataloader(self) -> DataLoader:
        raise AssertionError("The test split is read once, at the end.")
