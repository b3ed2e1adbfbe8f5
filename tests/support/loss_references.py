"""All losses, with default and other arguments, and their formulas in NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import yaml
from scipy import special

from stormproof_train.config.signature_binding import bind
from stormproof_train.losses.contract import loss_properties
from tests.support.forked_command import ROOT

LOSS_NAMES = sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml"))
CLASS_COUNTS = (60, 9, 31)
"""The training samples of each of three classes."""

Reference = Callable[[np.ndarray, np.ndarray], float]
"""Maps outputs and targets, of classification (N, classes) probabilities, to the loss."""


def build_loss(name: str, **arguments: Any) -> Any:
    entry = yaml.safe_load((ROOT / "conf" / "loss" / f"{name}.yaml").read_text())
    return bind({**entry, **arguments}, "loss", frozenset({"class_counts"})).build(class_counts=CLASS_COUNTS)


@dataclass(frozen=True)
class LossCase:
    name: str
    arguments: dict[str, Any]
    reference: Reference

    def build(self) -> Any:
        return build_loss(self.name, **self.arguments)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.arguments.items())])


def _cross_entropy(z: np.ndarray, t: np.ndarray, weights: Any = (1, 1, 1), smoothing: float = 0.0) -> float:
    cost = -special.log_softmax(z, axis=1) * np.array(weights)
    per_sample = ((1 - smoothing) * t * cost).sum(axis=1) + smoothing * cost.mean(axis=1)
    return per_sample.sum() / (t @ np.array(weights)).sum()


def _logit_adjustment(z: np.ndarray, t: np.ndarray, tau: float = 1.0) -> float:
    return _cross_entropy(z + tau * np.log(np.array(CLASS_COUNTS) / 100), t)


def _focal(z: np.ndarray, t: np.ndarray, gamma: float = 2.0, weights: Any = (1, 1, 1)) -> float:
    p = special.softmax(z, axis=1)
    cost = -((1 - p) ** gamma) * special.log_softmax(z, axis=1) * np.array(weights)
    return (t * cost).sum() / (t @ np.array(weights)).sum()


def _poly1(z: np.ndarray, t: np.ndarray, epsilon: float = 1.0) -> float:
    return _cross_entropy(z, t) + epsilon * (1 - (t * special.softmax(z, axis=1)).sum(axis=1)).mean()


def _generalized_cross_entropy(z: np.ndarray, t: np.ndarray, q: float = 0.7) -> float:
    return (t * (1 - special.softmax(z, axis=1) ** q) / q).sum(axis=1).mean()


def _symmetric_cross_entropy(z: np.ndarray, t: np.ndarray, alpha: float = 0.1, beta: float = 1.0) -> float:
    p = special.softmax(z, axis=1)
    label_costs = -p @ np.where(np.eye(3) == 1, 0.0, -4.0)  # cross-entropy of the prediction and each label
    return alpha * _cross_entropy(z, t) + beta * (t * label_costs).sum(axis=1).mean()


def _asymmetric(
    z: np.ndarray, t: np.ndarray, positive: float = 0.0, negative: float = 4.0, smoothing: float = 0.1
) -> float:
    p, log_p = special.softmax(z, axis=1), special.log_softmax(z, axis=1)
    total = 0.0
    for label in range(3):
        one_hot = np.eye(3)[label]
        power = np.where(one_hot == 1, positive, negative)
        factor = np.where(one_hot == 1, 1 - p, p) ** power
        smoothed = (1 - smoothing) * one_hot + smoothing / 3
        total += (t[:, label] * -(smoothed * factor * log_p).sum(axis=1)).mean()
    return total


def _bce(z: np.ndarray, t: np.ndarray) -> float:
    return -(t * special.log_expit(z) + (1 - t) * special.log_expit(-z)).mean()


def _brier(z: np.ndarray, t: np.ndarray) -> float:
    return ((special.softmax(z, axis=1) - t) ** 2).sum(axis=1).mean()


def _multi_margin(z: np.ndarray, t: np.ndarray, p: int = 1, margin: float = 1.0) -> float:
    label = t.argmax(axis=1)
    target_scores = np.take_along_axis(z, label[:, None], axis=1)
    hinges = np.maximum(0, margin - target_scores + z) ** p
    np.put_along_axis(hinges, label[:, None], 0.0, axis=1)
    return hinges.mean(axis=1).mean()


def _mse(z: np.ndarray, y: np.ndarray) -> float:
    return ((z - y) ** 2).mean()


def _mae(z: np.ndarray, y: np.ndarray) -> float:
    return np.abs(z - y).mean()


def _smooth_l1(z: np.ndarray, y: np.ndarray, beta: float = 1.0) -> float:
    return special.huber(beta, z - y).mean() / beta


def _pinball(z: np.ndarray, y: np.ndarray, quantile: float = 0.5) -> float:
    return np.where(y > z, quantile * (y - z), (1 - quantile) * (z - y)).mean()


def _poisson(z: np.ndarray, y: np.ndarray) -> float:
    return (np.exp(z) - y * z).mean()


def _gamma(z: np.ndarray, y: np.ndarray) -> float:
    return (z + y / np.exp(z)).mean()


def _tweedie(z: np.ndarray, y: np.ndarray, p: float = 1.5) -> float:
    mean = np.exp(z)
    return (mean ** (2 - p) / (2 - p) - y * mean ** (1 - p) / (1 - p)).mean()


def _gaussian_nll(z: np.ndarray, y: np.ndarray, eps: float = 1e-6) -> float:
    mean, variance = np.split(z, 2, axis=1)
    variance = np.maximum(np.exp(variance), eps)
    return (np.log(variance) / 2 + (y - mean) ** 2 / variance / 2).mean()


BALANCED_WEIGHTS = tuple(100 / (3 * np.array(CLASS_COUNTS)))
EFFECTIVE_NUMBER_WEIGHTS = tuple(0.001 / (1 - 0.999 ** np.array(CLASS_COUNTS)))
CLASS_WEIGHTS = (3.0, 1.0, 0.5)

CLASSIFICATION_CASES = [
    LossCase("cross_entropy", {}, _cross_entropy),
    LossCase("cross_entropy", {"class_weights": CLASS_WEIGHTS}, partial(_cross_entropy, weights=CLASS_WEIGHTS)),
    LossCase(
        "cross_entropy",
        {"class_weights": "balanced", "label_smoothing": 0.3},
        partial(_cross_entropy, weights=BALANCED_WEIGHTS, smoothing=0.3),
    ),
    LossCase("label_smoothing", {}, partial(_cross_entropy, smoothing=0.1)),
    LossCase("balanced", {}, partial(_cross_entropy, weights=BALANCED_WEIGHTS)),
    LossCase("class_balanced", {}, partial(_cross_entropy, weights=EFFECTIVE_NUMBER_WEIGHTS)),
    LossCase("class_balanced", {"beta": 0.0}, _cross_entropy),
    LossCase("logit_adjustment", {}, _logit_adjustment),
    LossCase("logit_adjustment", {"tau": 0.5}, partial(_logit_adjustment, tau=0.5)),
    LossCase("focal", {}, _focal),
    LossCase("focal", {"gamma": 0.5}, partial(_focal, gamma=0.5)),
    LossCase("focal", {"class_weights": "balanced"}, partial(_focal, weights=BALANCED_WEIGHTS)),
    LossCase("poly1", {}, _poly1),
    LossCase("poly1", {"epsilon": -1.0}, partial(_poly1, epsilon=-1.0)),
    LossCase("poly1", {"epsilon": 5.0}, partial(_poly1, epsilon=5.0)),
    LossCase("generalized_cross_entropy", {}, _generalized_cross_entropy),
    LossCase("generalized_cross_entropy", {"q": 1.0}, partial(_generalized_cross_entropy, q=1.0)),
    LossCase("generalized_cross_entropy", {"q": 0.1}, partial(_generalized_cross_entropy, q=0.1)),
    LossCase("symmetric_cross_entropy", {}, _symmetric_cross_entropy),
    LossCase(
        "symmetric_cross_entropy", {"alpha": 2.0, "beta": 0.5}, partial(_symmetric_cross_entropy, alpha=2.0, beta=0.5)
    ),
    LossCase("symmetric_cross_entropy", {"alpha": 0.0}, partial(_symmetric_cross_entropy, alpha=0.0)),
    LossCase("asymmetric", {}, _asymmetric),
    LossCase(
        "asymmetric",
        {"gamma_positive": 1.0, "gamma_negative": 2.0, "label_smoothing": 0.3},
        partial(_asymmetric, positive=1.0, negative=2.0, smoothing=0.3),
    ),
    LossCase("bce", {}, _bce),
    LossCase("multi_margin", {}, _multi_margin),
    LossCase("multi_margin", {"p": 2, "margin": 0.5}, partial(_multi_margin, p=2, margin=0.5)),
    LossCase("brier", {}, _brier),
]

REGRESSION_CASES = [
    LossCase("mse", {}, _mse),
    LossCase("mae", {}, _mae),
    LossCase("huber", {}, lambda z, y: special.huber(1.0, z - y).mean()),
    LossCase("huber", {"delta": 0.3}, lambda z, y: special.huber(0.3, z - y).mean()),
    LossCase("smooth_l1", {}, _smooth_l1),
    LossCase("smooth_l1", {"beta": 0.3}, partial(_smooth_l1, beta=0.3)),
    LossCase("log_cosh", {}, lambda z, y: np.log(np.cosh(z - y)).mean()),
    LossCase("pinball", {}, _pinball),
    LossCase("pinball", {"quantile": 0.9}, partial(_pinball, quantile=0.9)),
    LossCase("poisson", {}, _poisson),
    LossCase("gamma", {}, _gamma),
    LossCase("tweedie", {}, _tweedie),
    LossCase("tweedie", {"power": 1.2}, partial(_tweedie, p=1.2)),
    LossCase("gaussian_nll", {}, _gaussian_nll),
    LossCase("gaussian_nll", {"eps": 0.5}, partial(_gaussian_nll, eps=0.5)),
    LossCase("cauchy", {}, lambda z, y: np.log(1 + (z - y) ** 2 / 2).mean()),
    LossCase("cauchy", {"scale": 0.2}, lambda z, y: np.log(1 + ((z - y) / 0.2) ** 2 / 2).mean()),
]

WITHOUT_CASE = sorted({*LOSS_NAMES} - {case.name for case in [*CLASSIFICATION_CASES, *REGRESSION_CASES]})
"""Losses in conf/ that no case above compares with a formula."""
CLASSIFICATION_LOSSES = sorted({case.name for case in CLASSIFICATION_CASES})
REGRESSION_LOSSES = sorted({case.name for case in REGRESSION_CASES})


def output_width(loss: Any, outputs: int) -> int:
    return outputs * loss_properties(loss).outputs_per_target
