"""Manual optimization shared by several programs."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn


class OwnLoop(pl.LightningModule):
    """Manual optimization. Subclasses implement the part after the loss."""

    def __init__(self, network: nn.Module, loss: Any, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.loss = loss
        self.return_dict = return_dict

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs)

    def update(self, loss: torch.Tensor, batch_idx: int) -> None:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch
        preds = self(inputs)
        loss = self.loss(preds, target)
        self.update(loss, batch_idx)
        return {"loss": loss.detach(), "preds": preds.detach(), "target": target} if self.return_dict else loss.detach()
