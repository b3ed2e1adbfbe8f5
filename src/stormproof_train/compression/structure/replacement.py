"""Replaces modules of a network."""

from __future__ import annotations

from torch import nn


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replaces all occurrences of a module in place.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> replace_module(network, network[1], nn.ELU())
        >>> network[1]
        ELU(alpha=1.0)
    """
    for name in [name for name, module in network.named_modules(remove_duplicate=False) if module is old]:
        network.set_submodule(name, new)
