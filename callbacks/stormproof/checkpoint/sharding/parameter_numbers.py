"""Numbers the parameters of saved optimizer states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number_parameters(optimizer_state: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the keys of parameters by numbers in the order of the groups, as ``Optimizer.state_dict`` does.

    Args:
        optimizer_state: State of one optimizer, with any keys.

    Example:
        >>> number_parameters({"state": {"bias": {"step": 1}}, "param_groups": [{"params": ["weight", "bias"]}]})
        {'state': {1: {'step': 1}}, 'param_groups': [{'params': [0, 1]}]}
    """
    groups = optimizer_state.get("param_groups", [])
    numbers: dict[Any, int] = {}
    for group in groups:
        for key in group["params"]:
            numbers.setdefault(key, len(numbers))
    return {
        "state": {numbers[key]: state for key, state in optimizer_state.get("state", {}).items()},
        "param_groups": [{**group, "params": [numbers[key] for key in group["params"]]} for group in groups],
    }
