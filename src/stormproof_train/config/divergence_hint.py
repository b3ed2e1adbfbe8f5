"""What may be behind a training that diverges, as far as the choices tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stormproof.errors import DivergedError
from stormproof_train.activations import Activation, activation_factory
from stormproof_train.config.plan import Plan

_NUM_FEATURES = 720
"""Can be halved, as a gated unit does, and shared out to the pieces of a Maxout."""


@contextmanager
def add_divergence_hint(plan: Plan) -> Iterator[None]:
    """Adds to the sentence of a training that diverges what the model lacks.

    Raises:
        DivergedError: the one that was raised inside, with the likely cause at its end.
    """
    try:
        yield
    except DivergedError as error:
        activation = activation_factory(plan.activation.factory())
        if plan.model.arguments().get("norm") != "none" or not grows_quadratically(activation):
            raise
        raise DivergedError(
            f"{error}; before that, give the model a norm (model.norm=layer for an mlp, group for a cnn): what this "
            "activation gives grows with the square of what it gets"
        ) from error


def grows_quadratically(activation: Activation) -> bool:
    """Whether ten times the input makes far more than ten times the output, as of gated units.

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
        except RuntimeError:  # its parameters are for another number of features
            return False
