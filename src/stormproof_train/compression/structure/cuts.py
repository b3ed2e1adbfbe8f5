"""How many units a layer may be left with, and which go at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stormproof_train.compression.structure.coupling import Unit

BLOCK = 16
"""Channels that onnxruntime's convolutions take at once where the processor has AVX-512: 10 take as long as 16."""
LEAST_SHARE = 0.1
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


def cuts_of(units: Sequence[Unit], block: int) -> list[Cut]:
    """The cuts of a layer, from the first to the last: the least units, until as many are left as may be.

    Args:
        units: of the layer, ascending by magnitude.
        block: channels that are computed at once.
    """
    channels = min((len(each) for unit in units[:1] for each in unit.channels.values()), default=1)
    cuts, gone = [], 0
    for left in sizes(len(units), channels, block):
        chosen = units[gone : len(units) - left]
        cuts.append(Cut(sum(unit.magnitude for unit in chosen) / len(chosen), chosen))
        gone = len(units) - left
    return cuts


def sizes(units: int, channels: int = 1, block: int = BLOCK) -> list[int]:
    """How many of its units a layer may be left with, descending: whole blocks of channels, or parts that divide one.

    Where no such number of channels can be, as with 3 to a unit, any number of units may.

    Args:
        units: that it has.
        channels: of each of them.
        block: channels that are computed at once; 1 allows all numbers.

    Example:
        >>> sizes(64), sizes(20), sizes(6, block=1)
        ([48, 32, 16, 8], [16, 8, 4, 2], [5, 4, 3, 2])
    """
    least = max(2, math.ceil(LEAST_SHARE * units))
    fewer = range(units - 1, least - 1, -1)
    whole = [left for left in fewer if left * channels % block == 0 or block % (left * channels) == 0]
    return whole or list(fewer)
