"""Suggests command-line overrides for the problems that TrainingHealth finds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stormproof.finding import Finding, Problem
from stormproof_train.activations import activation_factory
from stormproof_train.config.plan import Plan

SATURATING_ACTIVATIONS = ("Sigmoid", "Tanh", "Softsign", "Hardtanh", "Hardsigmoid")
"""Activations that are constant in both tails."""


def make_advisor(plan: Plan) -> Callable[[Finding], str | None]:
    """Returns a function that suggests overrides against a finding in this configuration, or None.

    Args:
        plan: Plan of the run.
    """

    def advise(finding: Finding) -> str | None:
        suggest = _OVERRIDES_BY_PROBLEM.get(finding.problem)
        override = None if suggest is None else suggest(plan)
        return None if override is None else f"try {override}"

    return advise


def _decrease_learning_rate(plan: Plan) -> str:
    return f"optimizer.lr={_learning_rate(plan) / 10:g}"


def _increase_learning_rate(plan: Plan) -> str:
    return f"optimizer.lr={_learning_rate(plan) * 10:g}"


def _set_learning_rate(plan: Plan) -> str:
    return "optimizer.lr=0.001" if _learning_rate(plan) == 0 else "scheduler=none"


def _prevent_dead_units(plan: Plan) -> str:
    return "activation=leaky_relu" if _can_die(plan) else _decrease_learning_rate(plan)


def _can_die(plan: Plan) -> bool:
    """Returns True if the activation is elementwise and constant on [-2, -1] but not on [1, 2], like ReLU."""
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


def _prevent_vanishing_gradients(plan: Plan) -> str:
    overrides = ["activation=elu"] if plan.activation.path.endswith(SATURATING_ACTIVATIONS) else []
    if not plan.initialization.path.endswith(".auto"):
        overrides.append("initialization=auto")
    if overrides:
        return " ".join(overrides)
    return "model.norm=batch" if "norm" in plan.model.arguments() else _decrease_learning_rate(plan)


def _limit_gradients(plan: Plan) -> str:
    if not plan.initialization.path.endswith(".auto"):
        return "initialization=auto"
    clip_value = plan.trainer.kwargs.get("gradient_clip_val")
    return _decrease_learning_rate(plan) if clip_value else "trainer.gradient_clip_val=1.0"


def _regularize(plan: Plan) -> str | None:
    has_early_stopping = any(callback.path.endswith(".EarlyStopping") for callback in plan.callbacks.values())
    dropout = plan.model.arguments().get("dropout")
    dropout_override = "" if dropout is None or dropout >= 0.5 else f"model.dropout={0.5 if dropout else 0.3}"
    return " ".join(filter(None, ["" if has_early_stopping else "callbacks=early_stopping", dropout_override])) or None


def _add_loader_workers(plan: Plan) -> str | None:
    num_workers = plan.data.arguments().get("num_workers")
    return None if num_workers is None else f"data.num_workers={max(2 * num_workers, 2)}"


def _learning_rate(plan: Plan) -> float:
    return float(plan.optimizer.arguments().get("lr") or 0.0)


_OVERRIDES_BY_PROBLEM: dict[Problem, Callable[[Plan], str | None]] = {
    Problem.LEARNING_RATE_TOO_HIGH: _decrease_learning_rate,
    Problem.LEARNING_RATE_TOO_LOW: _increase_learning_rate,
    Problem.LEARNING_RATE_ZERO: _set_learning_rate,
    Problem.DEAD_UNITS: _prevent_dead_units,
    Problem.SATURATED_UNITS: _prevent_vanishing_gradients,
    Problem.VANISHING_GRADIENTS: _prevent_vanishing_gradients,
    Problem.EXPLODING_GRADIENTS: _limit_gradients,
    Problem.LOSS_SPIKE: _limit_gradients,
    Problem.OVERFITTING: _regularize,
    Problem.DATA_STARVATION: _add_loader_workers,
}
