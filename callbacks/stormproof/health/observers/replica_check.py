"""Compares the weights of the ranks of a job."""

from __future__ import annotations

import math

import pytorch_lightning as pl
import torch

from stormproof.distributed.collectives import all_gather_rows, world_size
from stormproof.event_log import log_event
from stormproof.lightning.layout import Layout


def compare_replicas(trainer: pl.Trainer, module: pl.LightningModule) -> float | None:
    """Returns the largest relative difference between ranks in the sum of a parameter.

    All ranks call it together.

    Returns:
        0 if all sums are equal, infinity if a parameter is NaN on only some ranks. None with one rank or sharded
        weights.
    """
    if world_size() < 2:
        return None
    if not Layout.of(trainer).is_replicated:
        name = type(trainer.strategy).__name__
        log_event(__name__, f"TrainingHealth does not compare weights between ranks, because {name} may shard them.")
        return None
    parameters = list(module.parameters())
    if not parameters:
        return 0.0
    sums = torch.stack([parameter.detach().double().sum() for parameter in parameters])
    return largest_difference(all_gather_rows(sums.to(trainer.strategy.root_device)))


def largest_difference(rows: torch.Tensor) -> float:
    """Returns the largest relative difference between the first row and the others.

    Args:
        rows: Sums of all parameters on each rank, (ranks, parameters).

    Example:
        >>> largest_difference(torch.tensor([[1.0, 2.0], [1.0, 3.0]]))
        0.5
        >>> largest_difference(torch.tensor([[1.0, 2.0], [1.0, float("nan")]]))
        inf
    """
    reference = rows[0]
    is_equal = (rows == reference) | (rows.isnan() & reference.isnan())
    differences = (rows - reference).abs() / reference.abs().clamp_min(1e-30)
    return float(differences.masked_fill(is_equal, 0.0).nan_to_num(nan=math.inf, posinf=math.inf).max())
