"""Gradients, and the layers that they reach."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from stormproof.gradients.measurement import GradientMeasurement


@dataclass(frozen=True)
class OptimizerWithoutGradient:
    """An optimizer that steps although its parameters never had a gradient.

    Attributes:
        layers: Layers with a parameter in the optimizer.
        steps: Number of its steps in traced batches.
    """

    layers: tuple[str, ...]
    steps: int


@dataclass(frozen=True)
class Gradients:
    """Gradients of a run.

    Attributes:
        measurements: Norms and update-to-weight ratios of the last measured steps, oldest first.
        uses_grad_scaler: Whether a gradient scaler is used.
        reached_layers: Layers that had a nonzero gradient.
        first_gradient_step: Number of optimizer steps before the first nonzero gradient. 0 if there was none.
        optimizers_without_gradient: Optimizers whose parameters never had a gradient when they stepped.
        steps_with_zero_gradient: Number of optimizer steps in traced batches in which a layer had a gradient of zero,
            for layers that never had another gradient.
        detached_layers: Layers that the loss depends on without a gradient, with the function that cut the graph.
        unused_layers: Layers in an optimizer that the loss does not depend on.
        frozen_layers: Layers without a parameter that requires a gradient.
        retained_steps: Number of steps with gradients of the previous step and number of checked steps, by optimizer.
    """

    measurements: Sequence[GradientMeasurement] = ()
    uses_grad_scaler: bool = False
    reached_layers: Collection[str] = frozenset()
    first_gradient_step: int = 0
    optimizers_without_gradient: Sequence[OptimizerWithoutGradient] = ()
    steps_with_zero_gradient: Mapping[str, int] = field(default_factory=dict)
    detached_layers: Mapping[str, str] = field(default_factory=dict)
    unused_layers: Sequence[str] = ()
    frozen_layers: Sequence[str] = ()
    retained_steps: Mapping[int, tuple[int, int]] = field(default_factory=dict)
