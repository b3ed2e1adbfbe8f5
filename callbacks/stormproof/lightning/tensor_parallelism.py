"""Refuses tensor parallelism for callbacks that need whole layers."""

from __future__ import annotations

import pytorch_lightning as pl

from stormproof.errors import StormproofError
from stormproof.lightning import internals


def refuse_tensor_parallelism(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Checks that each rank computes whole layers. Call it in ``setup``.

    Raises:
        StormproofError: If the ranks of a tensor-parallel group compute different units of a layer.
    """
    size = internals.tensor_parallel_size(trainer)
    if size > 1:
        name = type(callback).__name__
        raise StormproofError(
            f"{name} requires the outputs of whole layers on each rank, but {size} ranks split each layer: remove "
            f"{name}, or set tensor_parallel_size=1"
        )
