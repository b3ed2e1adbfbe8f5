"""The transformer of Lightning's demos on synthetic text."""

from typing import Any

import torch
from lightning import pytorch as pl
from lightning.pytorch.demos import LightningTransformer
from torch.utils.data import DataLoader, TensorDataset


class Transformer(LightningTransformer):
    def prepare_data(self) -> None:
        """Downloads nothing, unlike the original."""


def train(callbacks: list[Any]) -> None:
    arguments = (torch.arange(2000) % 17 + torch.arange(2000) // 400).reshape(-1, 20) % 30
    loader = DataLoader(TensorDataset(arguments[:, :-1].clone(), arguments[:, 1:].clone()), batch_size=4, shuffle=True)
    trainer = pl.Trainer(max_epochs=6, accelerator="cpu", logger=False, callbacks=callbacks)
    trainer.fit(Transformer(vocab_size=30), loader)
