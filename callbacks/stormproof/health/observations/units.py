"""Units of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stormproof.units.unit_activity import UnitActivity


@dataclass(frozen=True)
class Units:
    """Units of a run.

    Attributes:
        activity: Unit activity of the current epoch or of the last validation pass, by place.
        lagging: Activity in the validation pass of units after a batch norm that are active in training, by place. None
            until a place was measured in both.
        dropped: Activity in the validation pass of units after dropout only that are active in training, by place.
    """

    activity: Mapping[str, UnitActivity] = field(default_factory=dict)
    lagging: Mapping[str, UnitActivity] | None = None
    dropped: Mapping[str, UnitActivity] = field(default_factory=dict)
