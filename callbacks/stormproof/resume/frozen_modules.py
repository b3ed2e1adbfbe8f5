"""Captures which parts of a module are frozen, because a ``state_dict`` does not contain this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

FrozenState = Mapping[str, Sequence[str]]
KEYS = ("without_gradient", "evaluating", "not_tracking")


def capture(module: nn.Module) -> FrozenState:
    """Returns the names of frozen parameters, evaluating modules, and modules without running statistics.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
        >>> _ = network[0].weight.requires_grad_(False), network[1].eval()
        >>> capture(network)
        {'without_gradient': ['0.weight'], 'evaluating': ['1'], 'not_tracking': []}
    """
    modules = dict(module.named_modules())
    names = (
        [name for name, member in module.named_parameters() if not member.requires_grad],
        [name for name, member in modules.items() if not member.training],
        [name for name, member in modules.items() if not getattr(member, "track_running_stats", True)],
    )
    return dict(zip(KEYS, names, strict=True))


def restore(module: nn.Module, state: FrozenState) -> None:
    """Freezes the parameters and modules in ``state`` and unfreezes all others."""
    frozen_parameters, eval_modules, non_tracking_modules = (set(state[key]) for key in KEYS)
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name not in frozen_parameters
    for name, submodule in module.named_modules():
        submodule.training = name not in eval_modules
        if hasattr(submodule, "track_running_stats"):
            cast("Any", submodule).track_running_stats = name not in non_tracking_modules
