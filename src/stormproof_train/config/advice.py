"""Advice for findings of TrainingHealth and for diverged runs, as overrides on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from stormproof.errors import DivergedError
from stormproof.finding import Finding, Problem
from stormproof.health.measures.dead_shares import have_died_in_training
from stormproof_train.activations import Activation, activation_factory
from stormproof_train.config.plan import Plan

SATURATING_ACTIVATIONS = ("Sigmoid", "Tanh", "Softsign", "Hardtanh", "Hardsigmoid")
"""Activations that saturate on both sides."""
_NUM_FEATURES = 720
"""Divisible by 2 for gated units, and by the pieces of a Maxout."""


def make_advisor(plan: Plan) -> Callable[[Finding], str | None]:
    """Returns a function that translates a finding to advice for this configuration.

    Returns:
        Function from a finding to a sentence with overrides, or to None if no override helps.
    """

    def advise(finding: Finding) -> str | None:
        if finding.problem is Problem.DEAD_UNITS:
            overrides = _prevent_dead_units(plan, finding)
        else:
            suggest = _OVERRIDES_BY_PROBLEM.get(finding.problem)
            overrides = None if suggest is None else suggest(plan)
        return None if overrides is None else f"Try {overrides}."

    return advise


def _decrease_learning_rate(plan: Plan) -> str | None:
    """Returns an override with a tenth of the learning rate. None if the config has none."""
    return f"optimizer.lr={lr / 10:g}" if (lr := _learning_rate(plan)) else None


def _increase_learning_rate(plan: Plan) -> str | None:
    """Returns an override with ten times the learning rate. None if the config has none."""
    return f"optimizer.lr={lr * 10:g}" if (lr := _learning_rate(plan)) else None


def _set_learning_rate(plan: Plan) -> str:
    """Returns an override against a learning rate of zero."""
    return "optimizer.lr=0.001" if _learning_rate(plan) == 0 else "scheduler=none"


def _prevent_dead_units(plan: Plan, finding: Finding) -> str | None:
    """Returns alternatives, the most likely cure first.

    Units that died in training point to the learning rate, and units that were dead at initialization to the initial
    weights.
    """
    activation = "activation=leaky_relu" if _can_die(plan) else None
    initialization = None if plan.initialization.path.endswith(".auto") else "initialization=auto"
    dead, units, from_the_start = (float(finding.evidence[name]) for name in ("dead", "units", "from_the_start"))
    cure = _decrease_learning_rate(plan) if have_died_in_training(dead, units, from_the_start) else initialization
    return " or ".join(filter(None, [cure, activation])) or _decrease_learning_rate(plan)


def _can_die(plan: Plan) -> bool:
    """Returns whether the activation is elementwise and constant on [-2, -1] but not on [1, 2], like ReLU."""
    inputs = torch.linspace(1, 2, 12).unsqueeze(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        activation = activation_factory(plan.activation.factory())().eval()
        try:
            outputs_below_zero, outputs_above_zero = activation(-inputs), activation(inputs)
        except RuntimeError:  # its parameters require another number of features
            return False
    return outputs_below_zero.shape == inputs.shape and bool(
        (outputs_below_zero == outputs_below_zero[0, 0]).all()
        and (outputs_above_zero != outputs_above_zero[0, 0]).any()
    )


def _prevent_vanishing_gradients(plan: Plan) -> str | None:
    """Returns overrides for activation and initialization, or for a norm."""
    overrides = ["activation=elu"] if plan.activation.path.endswith(SATURATING_ACTIVATIONS) else []
    if not plan.initialization.path.endswith(".auto"):
        overrides.append("initialization=auto")
    if overrides:
        return " ".join(overrides)
    return "model.norm=batch" if "norm" in plan.model.arguments() else _decrease_learning_rate(plan)


def _limit_gradients(plan: Plan) -> str | None:
    """Returns an override for the initialization, or for clipping."""
    if not plan.initialization.path.endswith(".auto"):
        return "initialization=auto"
    clip_value = plan.trainer.kwargs.get("gradient_clip_val")
    return _decrease_learning_rate(plan) if clip_value else "trainer.gradient_clip_val=1.0"


def _regularize(plan: Plan) -> str | None:
    """Returns overrides for early stopping and more dropout. None if both are in use."""
    has_early_stopping = any(callback.path.endswith(".EarlyStopping") for callback in plan.callbacks.values())
    dropout = plan.model.arguments().get("dropout")
    dropout_override = "" if dropout is None or dropout >= 0.5 else f"model.dropout={0.5 if dropout else 0.3}"
    return " ".join(filter(None, ["" if has_early_stopping else "callbacks=early_stopping", dropout_override])) or None


def _add_loader_workers(plan: Plan) -> str | None:
    """Returns an override with twice the worker processes. None if the data has no such setting."""
    num_workers = plan.data.arguments().get("num_workers")
    return None if num_workers is None else f"data.num_workers={max(2 * num_workers, 2)}"


def _learning_rate(plan: Plan) -> float:
    """Returns the configured learning rate, or 0 if the optimizer has no such argument."""
    return float(plan.optimizer.arguments().get("lr") or 0.0)


_OVERRIDES_BY_PROBLEM: dict[str, Callable[[Plan], str | None]] = {
    Problem.LEARNING_RATE_TOO_HIGH: _decrease_learning_rate,
    Problem.LEARNING_RATE_TOO_LOW: _increase_learning_rate,
    Problem.LEARNING_RATE_ZERO: _set_learning_rate,
    Problem.SATURATED_UNITS: _prevent_vanishing_gradients,
    Problem.VANISHING_GRADIENTS: _prevent_vanishing_gradients,
    Problem.EXPLODING_GRADIENTS: _limit_gradients,
    Problem.LOSS_SPIKE: _limit_gradients,
    Problem.OVERFITTING: _regularize,
    Problem.DATA_STARVATION: _add_loader_workers,
}


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
