"""A watch point of a network and the records of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from stormproof.units.functional_trace import Positions
from stormproof.units.maxout_pieces import MaxoutPieces


@dataclass
class BatchExtremes:
    """Records of a batch at one watch point.

    Attributes:
        low: Minimum output of each unit, ``(units,)``.
        high: Maximum output of each unit, ``(units,)``.
        samples: Number of samples.
        nonzero_share: Fraction of nonzero outputs. None unless requested.
        magnitudes: Mean absolute output of each unit, ``(units,)``. None unless requested.
    """

    low: torch.Tensor
    high: torch.Tensor
    samples: int
    nonzero_share: torch.Tensor | None = None
    magnitudes: torch.Tensor | None = None


@dataclass(frozen=True)
class ActivationInput:
    """Output of a functional activation as the input of a layer.

    Attributes:
        source_layer: Layer before the activation.
        dimension: Dimension of the units in the input.
        positions: Positions of the units in this dimension. None if the units are in order.
        zero_only: Whether the values only show if a unit is always 0.
    """

    source_layer: str | None
    dimension: int
    positions: Positions
    zero_only: bool = False


@dataclass
class WatchPoint:
    """Watch point: the output of a module, or the input of a layer that consumes a functional activation.

    Attributes:
        name: Name of the module.
        module: The module.
        function: Name of the activation, if known.
        extremes_by_source: Records of the current batch by the layer before the watch point (None if unknown).
        traced_sources: Layer before the watch point and dimension of the units, by the layer that was called last.
        batch_norms: Batch norm between the layer and the watch point, by layer.
        activation_inputs: Inputs by index of the call within a batch. If a layer is called repeatedly, some of its
            inputs may be activations and others not.
        has_other_inputs: Whether an input in the traced batch was not an activation.
        call_index: Number of calls in the current batch.
        was_called: Whether the module was called.
        is_ambiguous: Whether the dimension of the units is unknown for an output.
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
        """Input of the next call. Untraced calls have the input of the first call if all traced inputs are equal."""
        return self.activation_inputs.get(
            self.call_index, None if self.has_other_inputs else self.activation_inputs.get(0)
        )

    @property
    def has_pieces(self) -> bool:
        """True if pieces of Maxout units are watched instead of units."""
        return isinstance(self.module, MaxoutPieces)
