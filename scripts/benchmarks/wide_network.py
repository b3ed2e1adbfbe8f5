"""Network of a given size, with Adam, for benchmarks of checkpoints."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

WIDTH = 1024
"""Number of inputs and outputs of each layer."""
BYTES_PER_LAYER = 3 * 4 * WIDTH * WIDTH
"""A weight and two moments of Adam."""


def count_layers(megabytes: float) -> int:
    """Returns the number of layers for a checkpoint of about this size. At least 1."""
    return max(1, int(megabytes * 10**6 // BYTES_PER_LAYER))


class WideNetwork(pl.LightningModule):
    """Linear layers whose weights have 4 MB each.

    Args:
        layers: Number of layers.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-5)
