"""How many features an activation takes, and gives."""

from __future__ import annotations

import torch

from stormproof_train.activations.factory import Activation
from stormproof_train.errors import UserError, first_line

MAX_FACTOR = 16
"""An activation is given at most so many times the features that are wanted of it, and at least so small a part."""


def infer_feature_counts(activation: Activation, width: int, spatial_dims: int = 0) -> tuple[int, int]:
    """The features that an activation has to get so that it gives ``width``, and those that it gives then.

    Most keep their number. Maxout of k pieces takes k times as many as it gives, a gated unit twice, CReLU half. That
    is found by trying them out on zeros, so anyone's own works too. Where no number gives ``width``, as none makes
    CReLU's output odd, more come out than were wanted, as few as can be.

    Args:
        activation: the factory of it; nothing is drawn from the process's generator.
        width: features that are wanted, at least 1.
        spatial_dims: dimensions behind the features: 0 for (N, features), 2 for images.

    Raises:
        UserError: if no number of features is taken and gives as many.

    Example:
        >>> from stormproof_train.activations import Maxout, activation_factory, crelu
        >>> infer_feature_counts(torch.nn.ReLU, 33), infer_feature_counts(lambda: Maxout(3), 33)
        ((33, 33), (99, 33))
        >>> infer_feature_counts(activation_factory(lambda: crelu), 33)
        (17, 34)
    """
    factors = range(2, MAX_FACTOR + 1)
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
    """How many features an activation gives where it gets ``in_features``; None where it does not take so many."""
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
            f"it does not take {width} features, nor 2 to {MAX_FACTOR} times as many, nor such a part of them: "
            f"{first_line(error)}"
        )
    input_shape = (2, width, *[2] * spatial_dims)
    type_name = "tuple" if isinstance(output, tuple) else type(output).__name__
    output_description = tuple(output.shape) if isinstance(output, torch.Tensor) else f"a {type_name}"
    return f"it gives {output_description} for an input of {input_shape}, and a layer needs (batch, features, …) again"
