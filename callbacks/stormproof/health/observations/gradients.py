"""Gradients, and the layers that they reach."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from stormproof.gradients.measurement import GradientMeasurement


@dataclass(frozen=True)
class Gradients:
    """Gradients of a run.

    Attributes:
        measurements: Norms and update-to-weight ratios of the last measured steps, oldest first.
        are_scaled: Whether a gradient scaler is used.
        layers: Layers that had a nonzero gradient.
        first_step: Optimizer steps before a layer was first seen with a gradient.
        steps_without: Number of traced steps in which no parameter had a gradient.
        detached_layers: Layers that the loss depends on without a gradient, with the function that cut the graph.
        unused_layers: Layers in an optimizer that the loss does not depend on.
        frozen_layers: Layers without a parameter that requires a gradient.
        retained: Number of steps with gradients of the previous step and number of checked steps, by optimizer.
    """

    measurements: Sequence[GradientMeasurement] = ()
    are_scaled: bool = False
    layers: Collection[str] = frozenset()
    first_step: int = 0
    steps_without: int = 0
    detached_layers: Mapping[str, str] = field(default_factory=dict)
    unused_layers: Sequence[str] = ()
    frozen_layers: Sequence[str] = ()
    retained: Mapping[int, tuple[int, int]] = field(default_factory=dict)
