"""Whether the ranks of a job hold the same weights."""

from __future__ import annotations

import pytorch_lightning as pl
import torch

from stormproof.agreement import side_by_side, world_size
from stormproof.requirements import PLAIN_STRATEGIES


def difference_of_replicas(trainer: pl.Trainer, module: pl.LightningModule) -> float:
    """The largest relative difference of the sums of parameters between ranks; 0 where each holds a part of them.

    All ranks call it together.
    """
    if world_size() < 2 or type(trainer.strategy).__name__ not in PLAIN_STRATEGIES:
        return 0.0
    parameters = list(module.parameters())
    if not parameters:
        return 0.0
    sums = torch.stack([each.detach().double().sum() for each in parameters])
    rows = side_by_side(sums.to(trainer.strategy.root_device))
    gap = (rows - rows[0]).abs().max(0).values / rows[0].abs().clamp_min(1e-30)
    return float(gap.max())
