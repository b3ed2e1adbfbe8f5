"""Adds a likely cause to the error of a diverged run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stormproof.errors import DivergedError
from stormproof_train.activations import Activation, activation_factory
from stormproof_train.config.plan import Plan

_NUM_FEATURES = 720
"""Divisible by 2 for gated units, and by the pieces of a Maxout."""


@contextmanager
def add_divergence_hint(plan: Plan) -> Iterator[None]:
    """Adds a missing norm to the message of a diverged run, if the activation grows quadratically.

    Raises:
        DivergedError: The error raised in the block, with the likely cause at its end.
    """
    try:
        yield
    except DivergedError as error:
        activation = activation_factory(plan.activation.factory())
        if plan.model.arguments().get("norm") != "none" or not grows_quadratically(activation):
            raise
        raise DivergedError(
            f"{str(error).removesuffix('.')}; before that, add a norm to the model (model.norm=layer for an mlp, "
            "group for a cnn), because the output of this activation grows with the square of its input"
        ) from error


def grows_quadratically(activation: Activation) -> bool:
    """Returns True if the output grows by more than a factor of 30 for ten times the input, as for gated units.

    Example:
        >>> from stormproof_train.activations import squared_relu
        >>> grows_quadratically(torch.nn.ReLU), grows_quadratically(activation_factory(lambda: squared_relu))
        (False, True)
    """
    inputs = 100 * torch.randn(8, _NUM_FEATURES, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = activation().eval()
        try:
            return bool(module(10 * inputs).abs().mean() > 30 * module(inputs).abs().mean())
        except RuntimeError:  # its parameters require another number of features
            return False
