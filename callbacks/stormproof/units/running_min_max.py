"""The smallest and the largest output of every unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stormproof.units.accumulation_dtype import accumulation_dtype


def compute_extremes(outputs: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The minimum and maximum of each unit over all samples and positions.

    Args:
        outputs: a tensor with at least 2 dimensions, one of which counts the units.
        axis: that one.

    Returns:
        two tensors (units,); NaN where the unit's outputs hold one.

    Example:
        >>> compute_extremes(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), axis=1)
        (tensor([0., 1.]), tensor([0., 3.]))
    """
    axis %= outputs.ndim
    units = outputs.shape[axis]
    low = high = outputs
    if axis + 1 < outputs.ndim:  # first over what lies behind the units: twice as fast on a CPU as all at once
        positions = outputs.flatten(axis + 1)
        low, high = positions.amin(-1), positions.amax(-1)
    return low.reshape(-1, units).amin(0), high.reshape(-1, units).amax(0)


@dataclass
class RunningExtremes:
    """The running minimum and maximum of each unit over the inputs seen: two numbers a unit.

    They do not depend on the order, nor on inputs that come twice, and merge over ranks exactly.

    Attributes:
        low: (units,), the smallest outputs so far.
        high: (units,), the largest.
        inputs: samples seen.
    """

    low: torch.Tensor
    high: torch.Tensor
    inputs: int

    def to(self, device: torch.device) -> RunningExtremes:
        """The same on ``device``."""
        if self.low.device == device:
            return self
        low, high = (bound.to(accumulation_dtype(device)).to(device) for bound in (self.low, self.high))
        return RunningExtremes(low, high, self.inputs)

    def merge(self, other: RunningExtremes) -> RunningExtremes:
        """Of the inputs of both.

        Example:
            >>> one = RunningExtremes(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]), 4)
            >>> one.merge(RunningExtremes(torch.tensor([0.0, 0.5]), torch.tensor([0.0, 1.5]), 2))
            RunningExtremes(low=tensor([0.0000, 0.5000]), high=tensor([0., 2.]), inputs=6)
        """
        return RunningExtremes(
            torch.minimum(self.low, other.low), torch.maximum(self.high, other.high), self.inputs + other.inputs
        )

    def is_dead(self) -> torch.Tensor:
        """(units,) bool: the output never left one value, without any tolerance; never where a NaN was seen.

        Example:
            >>> RunningExtremes(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]), 4).is_dead()
            tensor([ True, False])
        """
        return self.low == self.high
