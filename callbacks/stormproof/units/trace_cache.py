"""Saves the results of tracing, because a compiled network cannot be traced again after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stormproof.units.functional_trace import Positions
from stormproof.units.hooks import ActivationHooks
from stormproof.units.watch_point import ActivationInput


def state_dict(hooks: ActivationHooks) -> dict[str, Any]:
    """Returns the results of tracing as plain values."""
    input_rows = [
        [
            watch_point.name,
            watch_point.function,
            watch_point.has_other_inputs,
            call_index,
            {**vars(activation_input), "positions": _to_lists(activation_input.positions)},
        ]
        for watch_point in hooks.input_points.values()
        for call_index, activation_input in watch_point.activation_inputs.items()
    ]
    consumer_rows = [
        [*key, consumers and {name: _to_lists(positions) for name, positions in consumers.items()}]
        for key, consumers in hooks.consumers.items()
    ]
    origin_rows = [
        [watch_point.name, last_layer, source_layer, dimension]
        for watch_point in hooks.output_points.values()
        for last_layer, (source_layer, dimension) in watch_point.traced_sources.items()
    ]
    return {"activation_inputs": input_rows, "consumers": consumer_rows, "traced_sources": origin_rows}


def load_state_dict(hooks: ActivationHooks, state: Mapping[str, Any]) -> None:
    """Restores the results of tracing for the same network."""
    for name, last_layer, source_layer, dimension in state["traced_sources"]:
        if name in hooks.output_points:
            hooks.output_points[name].traced_sources[last_layer] = source_layer, dimension
    for name, function, mixed, call_index, input_state in state["activation_inputs"]:
        if name in hooks.input_points:
            hooks.input_points[name].function, hooks.input_points[name].has_other_inputs = function, mixed
            hooks.input_points[name].activation_inputs[call_index] = ActivationInput(
                **{**input_state, "positions": _to_tensor(input_state["positions"])}
            )
    for name, source_layer, consumers in state["consumers"]:
        hooks.consumers[name, source_layer] = consumers and {
            layer: _to_tensor(positions) for layer, positions in consumers.items()
        }


def _to_lists(positions: Positions) -> list[list[int]] | None:
    return None if positions is None else positions.tolist()


def _to_tensor(lists: list[list[int]] | None) -> Positions:
    return None if lists is None else torch.tensor(lists)
