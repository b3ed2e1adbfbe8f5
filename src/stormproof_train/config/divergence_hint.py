"""What may be behind a training that diverges, as far as the choices tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stormproof.errors import DivergedError
from stormproof_train.activations import Activation, activation_factory
from stormproof_train.config.plan import Plan

_FEATURES = 720
"""Can be halved, as a gated unit does, and shared out to the pieces of a Maxout."""


@contextmanager
def likely_cause_told(plan: Plan) -> Iterator[None]:
    """Adds to the sentence of a training that diverges what the model lacks.

    Raises:
        DivergedError: the one that was raised inside, with the likely cause at its end.
    """
    try:
        yield
    except DivergedError as error:
        activation = activation_factory(plan.activation.factory())
        if plan.model.arguments().get("norm") != "none" or not is_of_the_second_degree(activation):
            raise
        raise DivergedError(
            f"{error}; before that, give the model a norm (model.norm=layer for an mlp, group for a cnn): what this "
            "activation gives grows with the square of what it gets"
        ) from error


def is_of_the_second_degree(activation: Activation) -> bool:
    """Whether ten times the input makes far more than ten times the output, as of gated units.

    Example:
        >>> from stormproof_train.activations import squared_relu
        >>> is_of_the_second_degree(torch.nn.ReLU), is_of_the_second_degree(activation_factory(lambda: squared_relu))
        (False, True)
    """
    large = 100 * torch.randn(8, _FEATURES, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = activation().eval()
        try:
            return bool(module(10 * large).abs().mean() > 30 * module(large).abs().mean())
        except RuntimeError:  # its parameters are for another number of features
            return False
