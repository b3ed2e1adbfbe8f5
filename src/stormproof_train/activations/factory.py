"""Converts modules and plain functions to activation factories."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from stormproof_train.errors import UserError, first_line

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


_MAX_FACTOR = 16
"""Largest ratio between the numbers of input and output features that is tried."""


def infer_feature_counts(activation: Activation, width: int, spatial_dims: int = 0) -> tuple[int, int]:
    """Returns the number of input features for which an activation has ``width`` output features.

    Most activations keep the number of features. Maxout with k pieces divides it by k, a gated unit divides it by 2,
    and CReLU doubles it. The ratio is found by running the activation on zeros, so custom activations work too. If no
    number of input features gives exactly ``width`` (CReLU has no odd outputs), the smallest larger output is chosen.

    Args:
        activation: Factory of the activation. The global random generator keeps its state.
        width: Number of output features. Must be at least 1.
        spatial_dims: Number of dimensions after the features: 0 for ``(batch, features)``, 2 for images.

    Returns:
        Numbers of input features and output features.

    Raises:
        UserError: If the activation accepts no number of input features that gives at least ``width``.

    Example:
        >>> from stormproof_train.activations import Maxout, activation_factory, crelu
        >>> infer_feature_counts(torch.nn.ReLU, 33), infer_feature_counts(lambda: Maxout(3), 33)
        ((33, 33), (99, 33))
        >>> infer_feature_counts(activation_factory(lambda: crelu), 33)
        (17, 34)
    """
    factors = range(2, _MAX_FACTOR + 1)
    candidates = [width, *(width * factor for factor in factors), *(-(-width // factor) for factor in factors)]
    matches: list[tuple[int, int]] = []
    for in_features in candidates:
        out_features = infer_output_features(activation, in_features, spatial_dims)
        if out_features == width:
            return in_features, width
        if out_features is not None and out_features > width:
            matches.append((in_features, out_features))
    if not matches:
        raise UserError(f"activation: {_describe_mismatch(activation, width, spatial_dims)}")
    return min(matches, key=lambda counts: counts[1])


def infer_output_features(activation: Activation, in_features: int, spatial_dims: int = 0) -> int | None:
    """Returns the number of output features for ``in_features``, or None if the activation rejects this input."""
    try:
        output = _probe(activation, in_features, spatial_dims)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    if not isinstance(output, torch.Tensor):
        return None
    keeps_positions = output.shape[2:] == torch.Size([2] * spatial_dims)
    return output.shape[1] if output.ndim == 2 + spatial_dims and len(output) == 2 and keeps_positions else None


def _probe(activation: Activation, in_features: int, spatial_dims: int) -> object:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return activation().eval()(torch.zeros(2, in_features, *[2] * spatial_dims))


def _describe_mismatch(activation: Activation, width: int, spatial_dims: int) -> str:
    try:
        output = _probe(activation, width, spatial_dims)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return (
            f"does not accept {width} features, nor a multiple or fraction of them up to a factor of "
            f"{_MAX_FACTOR}: {first_line(error)}"
        )
    input_shape = (2, width, *[2] * spatial_dims)
    type_name = "tuple" if isinstance(output, tuple) else type(output).__name__
    output_description = tuple(output.shape) if isinstance(output, torch.Tensor) else f"a {type_name}"
    return f"returns {output_description} for input {input_shape}, expected (batch, features, …)"
