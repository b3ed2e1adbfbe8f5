"""A place at which units are watched, and what a batch leaves there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from stormproof.units.functional_trace import Positions
from stormproof.units.maxout_pieces import MaxoutPieces


@dataclass
class BatchExtremes:
    """What a batch left at one place.

    Attributes:
        low: (units,), the smallest output of each unit.
        high: (units,), the largest.
        samples: inputs.
        nonzero_share: the share of outputs that are not 0, if asked for.
        magnitudes: (units,), the mean absolute outputs, if asked for.
    """

    low: torch.Tensor
    high: torch.Tensor
    samples: int
    nonzero_share: torch.Tensor | None = None
    magnitudes: torch.Tensor | None = None


@dataclass(frozen=True)
class ActivationInput:
    """A functional activation that a layer takes.

    Attributes:
        before: the layer before it.
        dimension: of the input, the one that counts the units.
        positions: of units that were flattened with their positions, where they lie along it.
        zero_only: whether its values tell no more of a unit than whether that is always 0.
    """

    before: str | None
    dimension: int
    positions: Positions
    zero_only: bool = False


@dataclass
class WatchPoint:
    """One place: the output of a module, or the input of a layer that consumes a functional activation.

    Attributes:
        name: of that module.
        module: it.
        function: the activation's name, as far as known.
        extremes_by_source: of the batch that passes, by the layer before it (None if none is known).
        traced_sources: by the layer that was called last before it, the one whose output it takes and the dimension of
            the units, as far as they were traced.
        batch_norms: by the layer before it, the batch norm between the two.
        activation_inputs: what it takes, by the number of its call in a batch: of a layer that is called again and
            again, the input may be an activation's output in some calls only.
        has_other_inputs: whether some call took something else, in the batch that was traced.
        call_index: the calls so far in the batch that passes.
        was_called: whether anything has passed it.
        is_ambiguous: whether something has of which it cannot be told which dimension counts the units.
    """

    name: str
    module: nn.Module
    function: str = ""
    extremes_by_source: dict[str | None, BatchExtremes] = field(default_factory=dict)
    traced_sources: dict[str | None, tuple[str | None, int]] = field(default_factory=dict)
    batch_norms: dict[str | None, str | None] = field(default_factory=dict)
    activation_inputs: dict[int, ActivationInput] = field(default_factory=dict)
    has_other_inputs: bool = False
    call_index: int = 0
    was_called: bool = False
    is_ambiguous: bool = False

    @property
    def current_input(self) -> ActivationInput | None:
        """What it takes in the call that comes now: if that is always the same, also in calls more than were traced."""
        return self.activation_inputs.get(
            self.call_index, None if self.has_other_inputs else self.activation_inputs.get(0)
        )

    @property
    def has_pieces(self) -> bool:
        """Whether it is pieces that are watched, and not units."""
        return isinstance(self.module, MaxoutPieces)
