"""What to type against what TrainingHealth finds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from stormproof.finding import Finding, Problem
from stormproof_train.activations import activation_factory
from stormproof_train.config.plan import Plan

FLAT = ("Sigmoid", "Tanh", "Softsign", "Hardtanh", "Hardsigmoid")
"""Activations that are flat on both sides."""


def overrides_for(plan: Plan) -> Callable[[Finding], str | None]:
    """The overrides to try against each problem, true in this configuration; None where there is none to type.

    Args:
        plan: of the run.
    """

    def overrides(finding: Finding) -> str | None:
        words = _OVERRIDES.get(finding.problem)
        typed = None if words is None else words(plan)
        return None if typed is None else f"try {typed}"

    return overrides


def _lower_rate(plan: Plan) -> str:
    return f"optimizer.lr={_rate(plan) / 10:g}"


def _higher_rate(plan: Plan) -> str:
    return f"optimizer.lr={_rate(plan) * 10:g}"


def _some_rate(plan: Plan) -> str:
    return "optimizer.lr=0.001" if _rate(plan) == 0 else "scheduler=none"


def _living_units(plan: Plan) -> str:
    return "activation=leaky_relu" if _can_die(plan) else _lower_rate(plan)


def _can_die(plan: Plan) -> bool:
    """Whether the activation is elementwise and constant on [-2, -1] but not on [1, 2], like ReLU."""
    inputs = torch.linspace(1, 2, 12).unsqueeze(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        activation = activation_factory(plan.activation.factory())().eval()
        try:
            below, above = activation(-inputs), activation(inputs)
        except RuntimeError:  # its parameters are for another number of features
            return False
    return below.shape == inputs.shape and bool((below == below[0, 0]).all() and (above != above[0, 0]).any())


def _passing_gradient(plan: Plan) -> str:
    words = ["activation=elu"] if plan.activation.path.endswith(FLAT) else []
    if not plan.initialization.path.endswith(".auto"):
        words.append("initialization=auto")
    if words:
        return " ".join(words)
    return "model.norm=batch" if "norm" in plan.model.arguments() else _lower_rate(plan)


def _smaller_gradient(plan: Plan) -> str:
    if not plan.initialization.path.endswith(".auto"):
        return "initialization=auto"
    clips = plan.trainer.given.get("gradient_clip_val")
    return _lower_rate(plan) if clips else "trainer.gradient_clip_val=1.0"


def _regularized(plan: Plan) -> str | None:
    stops = any(each.path.endswith(".EarlyStopping") for each in plan.callbacks.values())
    drops = plan.model.arguments().get("dropout")
    more = "" if drops is None or drops >= 0.5 else f"model.dropout={0.5 if drops else 0.3}"
    return " ".join(filter(None, ["" if stops else "callbacks=early_stopping", more])) or None


def _fed(plan: Plan) -> str | None:
    workers = plan.data.arguments().get("num_workers")
    return None if workers is None else f"data.num_workers={max(2 * workers, 2)}"


def _rate(plan: Plan) -> float:
    return float(plan.optimizer.arguments().get("lr") or 0.0)


_OVERRIDES: dict[Problem, Callable[[Plan], str | None]] = {
    Problem.LEARNING_RATE_TOO_HIGH: _lower_rate,
    Problem.LEARNING_RATE_TOO_LOW: _higher_rate,
    Problem.LEARNING_RATE_ZERO: _some_rate,
    Problem.DEAD_UNITS: _living_units,
    Problem.SATURATED_UNITS: _passing_gradient,
    Problem.VANISHING_GRADIENTS: _passing_gradient,
    Problem.EXPLODING_GRADIENTS: _smaller_gradient,
    Problem.LOSS_SPIKE: _smaller_gradient,
    Problem.OVERFITTING: _regularized,
    Problem.DATA_STARVATION: _fed,
}
