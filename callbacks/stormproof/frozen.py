"""Which parts of a module are not being trained: what freezing changes, and what a ``state_dict`` does not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

Frozen = Mapping[str, Sequence[str]]


def capture(module: nn.Module) -> Frozen:
    """The parameters without a gradient, and the modules that evaluate, or keep no running statistics, by name.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
        >>> _ = network[0].weight.requires_grad_(False), network[1].eval()
        >>> capture(network)
        {'without_gradient': ['0.weight'], 'evaluating': ['1'], 'not_tracking': []}
    """
    modules = dict(module.named_modules())
    return {
        "without_gradient": [name for name, each in module.named_parameters() if not each.requires_grad],
        "evaluating": [name for name, each in modules.items() if not each.training],
        "not_tracking": [name for name, each in modules.items() if not getattr(each, "track_running_stats", True)],
    }


def restore(module: nn.Module, frozen: Frozen) -> None:
    """Freezes what ``frozen`` names, and nothing else."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name not in frozen["without_gradient"]
    for name, each in module.named_modules():
        each.training = name not in frozen["evaluating"]
        if hasattr(each, "track_running_stats"):
            cast("Any", each).track_running_stats = name not in frozen["not_tracking"]
