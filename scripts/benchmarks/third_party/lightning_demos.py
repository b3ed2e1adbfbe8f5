"""Trains the networks of Lightning's demos."""

from __future__ import annotations

from typing import Any

import torch
from lightning import pytorch as pl
from lightning.pytorch.demos import LightningTransformer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from projects import TRAINER
from torch.utils.data import DataLoader, TensorDataset


class Transformer(LightningTransformer):
    def prepare_data(self) -> None:
        """Does not download the text of the demo."""


def lightning_transformer(seed: int, callbacks: list[Any]) -> None:
    """Trains on periodic tokens."""
    tokens = (torch.arange(4000) % 17 + torch.arange(4000) // 400 + seed).reshape(-1, 20) % 30
    loader = DataLoader(TensorDataset(tokens[:, :-1].clone(), tokens[:, 1:].clone()), batch_size=4, shuffle=True)
    pl.Trainer(**TRAINER, max_steps=200, callbacks=callbacks).fit(Transformer(vocab_size=30), loader)


class Boring(BoringModel):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 512), batch_size=8, shuffle=True)

    val_dataloader = train_dataloader


def lightning_boring(_: int, callbacks: list[Any]) -> None:
    pl.Trainer(**TRAINER, max_steps=192, callbacks=callbacks).fit(Boring())
