"""How many features an activation takes, and gives."""

from __future__ import annotations

import torch

from stormproof_train.activations.factory import Activation
from stormproof_train.errors import UserError, first_line

MOST = 16
"""An activation is given at most so many times the features that are wanted of it, and at least so small a part."""


def features_for(activation: Activation, width: int, positions: int = 0) -> tuple[int, int]:
    """The features that an activation has to get so that it gives ``width``, and those that it gives then.

    Most keep their number. Maxout of k pieces takes k times as many as it gives, a gated unit twice, CReLU half. That
    is found by trying them out on zeros, so anyone's own works too. Where no number gives ``width``, as none makes
    CReLU's output odd, more come out than were wanted, as few as can be.

    Args:
        activation: the factory of it; nothing is drawn from the process's generator.
        width: features that are wanted, at least 1.
        positions: dimensions behind the features: 0 for (N, features), 2 for images.

    Raises:
        UserError: if no number of features is taken and gives as many.

    Example:
        >>> from stormproof_train.activations import Maxout, activation_factory, crelu
        >>> features_for(torch.nn.ReLU, 33), features_for(lambda: Maxout(3), 33)
        ((33, 33), (99, 33))
        >>> features_for(activation_factory(lambda: crelu), 33)
        (17, 34)
    """
    factors = range(2, MOST + 1)
    tried = [width, *(width * factor for factor in factors), *(-(-width // factor) for factor in factors)]
    found: list[tuple[int, int]] = []
    for before in tried:
        after = features_after(activation, before, positions)
        if after == width:
            return before, width
        if after is not None and after > width:
            found.append((before, after))
    if not found:
        raise UserError(f"activation: {_refusal(activation, width, positions)}")
    return min(found, key=lambda counts: counts[1])


def features_after(activation: Activation, before: int, positions: int = 0) -> int | None:
    """How many features an activation gives where it gets ``before``; None where it does not take so many."""
    try:
        output = _tried(activation, before, positions)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    if not isinstance(output, torch.Tensor):
        return None
    kept = output.shape[2:] == torch.Size([2] * positions)
    return output.shape[1] if output.ndim == 2 + positions and len(output) == 2 and kept else None


def _tried(activation: Activation, before: int, positions: int) -> object:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return activation().eval()(torch.zeros(2, before, *[2] * positions))


def _refusal(activation: Activation, width: int, positions: int) -> str:
    try:
        output = _tried(activation, width, positions)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return (
            f"it does not take {width} features, nor 2 to {MOST} times as many, nor such a part of them: "
            f"{first_line(error)}"
        )
    given = (2, width, *[2] * positions)
    kind = "tuple" if isinstance(output, tuple) else type(output).__name__
    told = tuple(output.shape) if isinstance(output, torch.Tensor) else f"a {kind}"
    return f"it gives {told} for an input of {given}, and a layer needs (batch, features, …) again"
