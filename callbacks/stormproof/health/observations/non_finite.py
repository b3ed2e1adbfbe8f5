"""Origin of NaN and infinity."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NonFiniteOrigin:
    """Origin of the first NaN or infinity.

    Attributes:
        step: Number of optimizer steps before it.
        batch_idx: Index of the batch in its epoch.
        tensor: Name of the tensor.
        layer: Name of the layer. Empty for the batch.
        in_data: Whether the tensor is part of the batch.
    """

    step: int
    batch_idx: int
    tensor: str
    layer: str
    in_data: bool
