"""An activation for a network: a module, or a plain function made into one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

Activation = Callable[[], nn.Module]
"""What a model takes: a factory, called once for each place, so that no two places share parameters."""


class Elementwise(nn.Module):
    """A function of one tensor as a module, e.g. ``torch.tanh``.

    Args:
        function: maps a tensor to one of the same shape.

    Example:
        >>> Elementwise(torch.tanh)(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``x`` (any shape) to a tensor of its shape."""
        return self.function(x)

    def extra_repr(self) -> str:
        """The function's name."""
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        return getattr(function, "__name__", type(function).__name__)


def activation_factory(build: Callable[[], Callable[[torch.Tensor], torch.Tensor]]) -> Activation:
    """A factory of modules from a factory of modules or functions."""

    def make() -> nn.Module:
        activation = build()
        return activation if isinstance(activation, nn.Module) else Elementwise(activation)

    return make
