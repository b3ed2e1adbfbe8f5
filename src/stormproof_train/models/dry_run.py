"""Runs a network in evaluation mode without lasting effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def dry_run(network: nn.Module) -> Iterator[None]:
    """Switches a network to evaluation mode and restores module modes and torch's random state on exit.

    Example:
        >>> network = nn.Dropout(0.5)
        >>> with dry_run(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    training_modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in training_modes.items():
            module.training = mode
