"""Keeps the measurements of traced steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from stormproof.health.observations.data import InputStats
from stormproof.health.observations.predictions import Comparison, Predictions, PredictionStats, TracedStep
from stormproof.health.observations.weights import Weights
from stormproof.health.observers.parameter_groups import measure_weights
from stormproof.health.observers.tracing.step_trace import StepTrace

FIRST_TRACES, MAX_TRACES = 4, 64
"""Number of first traces to keep, and maximum number of further traces."""


class TraceHistory:
    """Keeps the first and the last traced steps.

    Attributes:
        layer_order: Layers with weights in call order.
        input_stats: Statistics of the input of the first layer. None if unknown.
        mode_functions: Functions before the activation after a layer that compute something else in evaluation mode.
    """

    def __init__(self) -> None:
        self._traces: list[TracedStep] = []
        self._comparisons: list[Comparison] = []
        self._weight_stats: dict[int, dict[str, tuple[float, float]]] = {}
        self.layer_order: list[str] = []
        self.input_stats: InputStats | None = None
        self.mode_functions: dict[str, frozenset[str]] = {}

    def add_weights(self, step: int, module: nn.Module) -> None:
        """Measures the weights at the start of a traced step."""
        self._weight_stats[step] = measure_weights(module)
        for old_step in list(self._weight_stats)[FIRST_TRACES:-MAX_TRACES]:
            del self._weight_stats[old_step]

    def add(
        self, trace: StepTrace, step: int, predictions: tuple[PredictionStats, ...], comparison: Comparison | None
    ) -> None:
        """Adds a traced step, its predictions, and the comparison of its loss, if any."""
        layers = tuple(trace.layer_calls)
        if comparison is not None:
            self._comparisons = [*self._comparisons, comparison][-2 * MAX_TRACES :]
        self._traces.append(
            TracedStep(
                step,
                layers,
                tuple(trace.activation_calls),
                tuple(trace.broadcast_mismatches),
                predictions,
                trace.norm_distances,
            )
        )
        del self._traces[FIRST_TRACES:-MAX_TRACES]
        if layers and not self.layer_order:
            self.layer_order = list(dict.fromkeys(call.layer for call in layers))
        self.input_stats = self.input_stats or trace.compute_input_stats()
        for layer, functions in trace.mode_functions.items():
            self.mode_functions[layer] = self.mode_functions.get(layer, frozenset()) | functions

    def observe_predictions(self) -> Predictions:
        """Returns the traced steps and comparisons."""
        return Predictions(tuple(self._traces), tuple(self._comparisons))

    def observe_weights(self) -> Weights:
        """Returns the weights at the start of traced steps."""
        return Weights(dict(self._weight_stats), tuple(self.layer_order))

    def state_dict(self) -> dict[str, Any]:
        """Returns the comparisons as plain values."""
        return {"comparisons": [list(vars(entry).values()) for entry in self._comparisons]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the comparisons."""
        self._comparisons = [Comparison(*values) for values in state["comparisons"]]
