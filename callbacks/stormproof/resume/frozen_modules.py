"""Which parts of a module are not being trained: what freezing changes, and what a ``state_dict`` does not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

Frozen = Mapping[str, Sequence[str]]
KEYS = ("without_gradient", "evaluating", "not_tracking")


def capture(module: nn.Module) -> Frozen:
    """The parameters without a gradient, and the modules that evaluate, or keep no running statistics, by name.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
        >>> _ = network[0].weight.requires_grad_(False), network[1].eval()
        >>> capture(network)
        {'without_gradient': ['0.weight'], 'evaluating': ['1'], 'not_tracking': []}
    """
    modules = dict(module.named_modules())
    names = (
        [name for name, each in module.named_parameters() if not each.requires_grad],
        [name for name, each in modules.items() if not each.training],
        [name for name, each in modules.items() if not getattr(each, "track_running_stats", True)],
    )
    return dict(zip(KEYS, names, strict=True))


def restore(module: nn.Module, frozen: Frozen) -> None:
    """Freezes what ``frozen`` names, and nothing else."""
    without_gradient, evaluating, not_tracking = (set(frozen[key]) for key in KEYS)
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name not in without_gradient
    for name, each in module.named_modules():
        each.training = name not in evaluating
        if hasattr(each, "track_running_stats"):
            cast("Any", each).track_running_stats = name not in not_tracking
