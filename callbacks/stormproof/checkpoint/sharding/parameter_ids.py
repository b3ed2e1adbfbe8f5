"""Keys of saved optimizer states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rekey_to_parameter_ids(optimizer_state: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces parameter names by parameter IDs in the order of the groups, as in ``Optimizer.state_dict``.

    Args:
        optimizer_state: State of one optimizer, with any keys.

    Example:
        >>> rekey_to_parameter_ids({"state": {"bias": {"step": 1}}, "param_groups": [{"params": ["weight", "bias"]}]})
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
