"""Converts modules and plain functions to activation factories."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

Activation = Callable[[], nn.Module]
"""Factory of an activation. Models call it once per layer, so layers do not share parameters."""


class Elementwise(nn.Module):
    """Wraps a function of one tensor, such as ``torch.tanh``, in a module.

    Args:
        function: Maps a tensor to a tensor of the same shape.

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
        """Returns the name of the function."""
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        return getattr(function, "__name__", type(function).__name__)


def activation_factory(build: Callable[[], Callable[[torch.Tensor], torch.Tensor]]) -> Activation:
    """Returns a factory of modules for a factory of modules or functions.

    Args:
        build: Returns a new module, or a function that maps a tensor to a tensor.

    Returns:
        A factory that returns ``build()`` if it is a module, and an :class:`Elementwise` around it otherwise.

    Example:
        >>> activation_factory(lambda: torch.tanh)()
        Elementwise(tanh)
        >>> activation_factory(nn.ReLU)()
        ReLU()
    """

    def make() -> nn.Module:
        activation = build()
        return activation if isinstance(activation, nn.Module) else Elementwise(activation)

    return make
