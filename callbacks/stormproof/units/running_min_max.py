"""Minimum and maximum output of each unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 on MPS, which does not support float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def compute_extremes(outputs: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the minimum and maximum of each unit over all samples and positions.

    Args:
        outputs: Tensor with at least 2 dimensions.
        axis: Dimension of the units.

    Returns:
        Minimum and maximum, two tensors ``(units,)``. NaN if an output of the unit is NaN.

    Example:
        >>> compute_extremes(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), axis=1)
        (tensor([0., 1.]), tensor([0., 3.]))
    """
    axis %= outputs.ndim
    units = outputs.shape[axis]
    low = high = outputs
    if axis + 1 < outputs.ndim:  # reducing the last dimensions first is twice as fast on a CPU
        positions = outputs.flatten(axis + 1)
        low, high = positions.amin(-1), positions.amax(-1)
    return low.reshape(-1, units).amin(0), high.reshape(-1, units).amax(0)


@dataclass
class RunningExtremes:
    """Running minimum and maximum of each unit.

    They depend neither on the order of inputs nor on duplicates, and can be merged exactly over ranks.

    Attributes:
        low: Minimum outputs, ``(units,)``.
        high: Maximum outputs, ``(units,)``.
        inputs: Number of samples.
    """

    low: torch.Tensor
    high: torch.Tensor
    inputs: int

    def to(self, device: torch.device) -> RunningExtremes:
        """Returns a copy on ``device``, or this object if it is there."""
        if self.low.device == device:
            return self
        low, high = (bound.to(accumulation_dtype(device)).to(device) for bound in (self.low, self.high))
        return RunningExtremes(low, high, self.inputs)

    def merge(self, other: RunningExtremes) -> RunningExtremes:
        """Returns the extremes over the inputs of both.

        Example:
            >>> one = RunningExtremes(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]), 4)
            >>> one.merge(RunningExtremes(torch.tensor([0.0, 0.5]), torch.tensor([0.0, 1.5]), 2))
            RunningExtremes(low=tensor([0.0000, 0.5000]), high=tensor([0., 2.]), inputs=6)
        """
        return RunningExtremes(
            torch.minimum(self.low, other.low), torch.maximum(self.high, other.high), self.inputs + other.inputs
        )

    def is_dead(self) -> torch.Tensor:
        """A unit is dead if its output is constant (exact equality). A unit with a NaN is not dead.

        Returns:
            Boolean mask, ``(units,)``.

        Example:
            >>> RunningExtremes(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]), 4).is_dead()
            tensor([ True, False])
        """
        return self.low == self.high
