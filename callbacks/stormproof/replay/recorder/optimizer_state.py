"""Hashes the state of optimizers, learning rate schedulers and gradient scalers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from stormproof.replay.recorder.hashing import hash_value, new_digest, to_number, update_with_data, update_with_value
from stormproof.user_objects import read_attributes

_NOT_HYPERPARAMETERS = {"params", "lr", "initial_lr", "param_names"}
_SCHEDULER_INTERNALS = {"optimizer", "_get_lr_called_within_step", "_is_initial", "verbose", "_initial_step"}


def list_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Returns the parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def hash_optimizer(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> str:
    """Returns the hash of the state of each parameter, by name, such as moments and step counts."""
    digest = new_digest()
    for parameter in parameters:
        state = optimizer.state.get(parameter)  # of a defaultdict: an index would add the parameter
        if state is None:
            digest.update(b"-")
        elif isinstance(state, dict):
            for name in sorted(state, key=str):
                digest.update(f"{name}:".encode())
                value = state[name]
                if isinstance(value, torch.Tensor):
                    update_with_data(digest, value)
                else:
                    update_with_value(digest, value)
        else:
            update_with_value(digest, state)
    return digest.hexdigest()


def describe_learning_rates(optimizer: torch.optim.Optimizer) -> str:
    """Returns the learning rates of the groups, such as ``[0.1, 0.01]``."""
    return repr([float(to_number(group["lr"])) for group in optimizer.param_groups if "lr" in group])


def hash_hyperparameters(optimizer: torch.optim.Optimizer) -> str:
    """Returns the hash of the other options of the groups."""
    return hash_value(
        [
            {name: value for name, value in group.items() if name not in _NOT_HYPERPARAMETERS}
            for group in optimizer.param_groups
        ]
    )


def hash_schedulers(optimizer: torch.optim.Optimizer, schedulers: Iterable[Any]) -> dict[str, str]:
    """Returns ``scheduler/<Class>`` for each scheduler of ``optimizer``. Several of one class have one hash."""
    states: dict[str, list[Any]] = {}
    for scheduler in schedulers:
        scheduled = read_attributes(scheduler).get("optimizer")
        if scheduled is optimizer or read_attributes(scheduled).get("optimizer") is optimizer:  # accelerate wraps it
            states.setdefault(type(scheduler).__name__, []).append(_get_scheduler_state(scheduler))
    return {f"scheduler/{name}": hash_value(values) for name, values in states.items()}


def _get_scheduler_state(scheduler: Any) -> dict[str, Any]:
    """Returns the attributes that ``state_dict`` would save, without calls of the user's code."""
    state: dict[str, Any] = {}
    for name, value in read_attributes(scheduler).items():
        if name in _SCHEDULER_INTERNALS or callable(value):
            continue
        state[name] = [_get_item_state(item) for item in value] if isinstance(value, list) else value
    return state


def _get_item_state(item: Any) -> Any:
    """Returns the state of a scheduler in a SequentialLR, or of a callable object in a LambdaLR."""
    attributes = read_attributes(item)
    if "optimizer" in attributes:
        return _get_scheduler_state(item)
    return attributes if callable(item) else item


def hash_scalers(scalers: Iterable[Any]) -> str | None:
    """Returns the hash of the scale and the growth tracker of the enabled gradient scalers, or None without one."""
    states: list[Any] = []
    for scaler in scalers:
        if scaler._enabled:
            scale = scaler._init_scale if scaler._scale is None else scaler._scale
            growth = scaler._init_growth_tracker if scaler._growth_tracker is None else scaler._growth_tracker
            states.append([to_number(scale), to_number(growth), scaler._growth_factor, scaler._growth_interval])
    return hash_value(states) if states else None
