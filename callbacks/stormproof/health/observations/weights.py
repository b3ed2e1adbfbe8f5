"""Weights of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

COLLAPSED_NORM_SHARE = 0.05
"""Share of the first weight norm of a layer below which its weights have collapsed."""


@dataclass(frozen=True)
class Weights:
    """Weights at the start of traced steps.

    Attributes:
        stats: Norm and sum of the weights of each layer, by step.
        layer_order: Layers with weights in call order.
    """

    stats: Mapping[int, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    layer_order: Sequence[str] = ()

    @property
    def norms(self) -> dict[int, dict[str, float]]:
        """Norm of each layer, by step."""
        return {step: {layer: norm for layer, (norm, _) in layers.items()} for step, layers in self.stats.items()}

    def have_changed(self, layer: str) -> bool:
        """Returns whether the weights of a layer have changed between traced steps."""
        return len({layers[layer] for layers in self.stats.values() if layer in layers}) > 1

    def have_collapsed(self, layer: str | None) -> bool:
        """Returns whether the weights of a layer have shrunk below 5% of their first norm."""
        norms = [layers[layer][0] for layers in self.stats.values() if layer is not None and layer in layers]
        return len(norms) > 1 and norms[-1] < COLLAPSED_NORM_SHARE * norms[0]
