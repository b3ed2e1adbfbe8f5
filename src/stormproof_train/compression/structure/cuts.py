"""Plans how many units a layer may keep, and which are removed together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stormproof_train.compression.structure.coupling import Unit

BLOCK = 16
"""Channels that onnxruntime's convolutions process together with AVX-512: 10 channels take as long as 16."""
MIN_SHARE = 0.1
"""Minimum share of units that a layer keeps. It also keeps at least two units."""


@dataclass(frozen=True)
class Cut:
    """Units that are removed together.

    Attributes:
        magnitude: Mean magnitude.
        units: Units to remove.
    """

    magnitude: float
    units: Sequence[Unit]


def plan_cuts(units: Sequence[Unit], block: int) -> list[Cut]:
    """Returns the cuts of a layer in order. Each removes the units with the smallest magnitudes.

    Args:
        units: Units of the layer in ascending order of magnitude.
        block: Number of channels that are computed together.
    """
    channels_per_unit = min(
        (len(channel_list) for unit in units[:1] for channel_list in unit.channels.values()), default=1
    )
    cuts, num_removed = [], 0
    for num_remaining in allowed_sizes(len(units), channels_per_unit, block):
        removed_units = units[num_removed : len(units) - num_remaining]
        cuts.append(Cut(sum(unit.magnitude for unit in removed_units) / len(removed_units), removed_units))
        num_removed = len(units) - num_remaining
    return cuts


def allowed_sizes(num_units: int, channels_per_unit: int = 1, block: int = BLOCK) -> list[int]:
    """Returns the allowed numbers of units in descending order: multiples of a block, or divisors of a block.

    If no number of units matches, as with 3 channels per unit, any number is allowed.

    Args:
        num_units: Current number of units.
        channels_per_unit: Number of channels of each unit.
        block: Number of channels that are computed together. 1 allows all numbers.

    Example:
        >>> allowed_sizes(64), allowed_sizes(20), allowed_sizes(6, block=1)
        ([48, 32, 16, 8], [16, 8, 4, 2], [5, 4, 3, 2])
    """
    minimum = max(2, math.ceil(MIN_SHARE * num_units))
    candidates = range(num_units - 1, minimum - 1, -1)
    aligned_sizes = [
        num_remaining
        for num_remaining in candidates
        if num_remaining * channels_per_unit % block == 0 or block % (num_remaining * channels_per_unit) == 0
    ]
    return aligned_sizes or list(candidates)
