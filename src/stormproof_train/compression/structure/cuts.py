"""How many units a layer may be left with, and which go at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stormproof_train.compression.structure.coupling import Unit

BLOCK = 16
"""Channels that onnxruntime's convolutions take at once where the processor has AVX-512: 10 take as long as 16."""
MIN_SHARE = 0.1
"""A layer keeps at least this share of its units, and two."""


@dataclass(frozen=True)
class Cut:
    """Units that go at once.

    Attributes:
        magnitude: their mean.
        units: they.
    """

    magnitude: float
    units: Sequence[Unit]


def plan_cuts(units: Sequence[Unit], block: int) -> list[Cut]:
    """The cuts of a layer, from the first to the last: the least units, until as many are left as may be.

    Args:
        units: of the layer, ascending by magnitude.
        block: channels that are computed at once.
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
    """How many of its units a layer may be left with, descending: whole blocks of channels, or parts that divide one.

    Where no such number of channels can be, as with 3 to a unit, any number of units may.

    Args:
        num_units: that it has.
        channels_per_unit: of each of them.
        block: channels that are computed at once; 1 allows all numbers.

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
