"""Every ``loss=``, as its config builds it and with other arguments, beside its formula in NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import yaml
from scipy import special

from stormproof_train.config.signature_binding import bind
from stormproof_train.losses.contract import facts_of
from tests.support.forked_command import ROOT

WORDS = sorted(path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml"))
COUNTS = (60, 9, 31)
"""The training samples of each of three classes."""

Reference = Callable[[np.ndarray, np.ndarray], float]
"""Maps outputs and targets, of classification (N, classes) probabilities, to the loss."""


def build(word: str, **arguments: Any) -> Any:
    entry = yaml.safe_load((ROOT / "conf" / "loss" / f"{word}.yaml").read_text())
    return bind({**entry, **arguments}, "loss", frozenset({"class_counts"})).build(class_counts=COUNTS)


@dataclass(frozen=True)
class Case:
    word: str
    arguments: dict[str, Any]
    reference: Reference

    def loss(self) -> Any:
        return build(self.word, **self.arguments)

    def __str__(self) -> str:
        return " ".join([self.word, *(f"{name}={value}" for name, value in self.arguments.items())])


def _cross_entropy(z: np.ndarray, t: np.ndarray, weights: Any = (1, 1, 1), smoothing: float = 0.0) -> float:
    cost = -special.log_softmax(z, axis=1) * np.array(weights)
    per_sample = ((1 - smoothing) * t * cost).sum(axis=1) + smoothing * cost.mean(axis=1)
    return per_sample.sum() / (t @ np.array(weights)).sum()


def _adjusted(z: np.ndarray, t: np.ndarray, tau: float = 1.0) -> float:
    return _cross_entropy(z + tau * np.log(np.array(COUNTS) / 100), t)


def _focal(z: np.ndarray, t: np.ndarray, gamma: float = 2.0, weights: Any = (1, 1, 1)) -> float:
    p = special.softmax(z, axis=1)
    cost = -((1 - p) ** gamma) * special.log_softmax(z, axis=1) * np.array(weights)
    return (t * cost).sum() / (t @ np.array(weights)).sum()


def _poly1(z: np.ndarray, t: np.ndarray, epsilon: float = 1.0) -> float:
    return _cross_entropy(z, t) + epsilon * (1 - (t * special.softmax(z, axis=1)).sum(axis=1)).mean()


def _generalized(z: np.ndarray, t: np.ndarray, q: float = 0.7) -> float:
    return (t * (1 - special.softmax(z, axis=1) ** q) / q).sum(axis=1).mean()


def _symmetric(z: np.ndarray, t: np.ndarray, alpha: float = 0.1, beta: float = 1.0) -> float:
    p = special.softmax(z, axis=1)
    of_label = -p @ np.where(np.eye(3) == 1, 0.0, -4.0)  # cross-entropy of the prediction and each label
    return alpha * _cross_entropy(z, t) + beta * (t * of_label).sum(axis=1).mean()


def _asymmetric(
    z: np.ndarray, t: np.ndarray, positive: float = 0.0, negative: float = 4.0, smoothing: float = 0.1
) -> float:
    p, log_p = special.softmax(z, axis=1), special.log_softmax(z, axis=1)
    total = 0.0
    for label in range(3):
        one = np.eye(3)[label]
        power = np.where(one == 1, positive, negative)
        factor = np.where(one == 1, 1 - p, p) ** power
        smoothed = (1 - smoothing) * one + smoothing / 3
        total += (t[:, label] * -(smoothed * factor * log_p).sum(axis=1)).mean()
    return total


def _bce(z: np.ndarray, t: np.ndarray) -> float:
    return -(t * special.log_expit(z) + (1 - t) * special.log_expit(-z)).mean()


def _brier(z: np.ndarray, t: np.ndarray) -> float:
    return ((special.softmax(z, axis=1) - t) ** 2).sum(axis=1).mean()


def _multi_margin(z: np.ndarray, t: np.ndarray, p: int = 1, margin: float = 1.0) -> float:
    label = t.argmax(axis=1)
    own = np.take_along_axis(z, label[:, None], axis=1)
    hinges = np.maximum(0, margin - own + z) ** p
    np.put_along_axis(hinges, label[:, None], 0.0, axis=1)
    return hinges.mean(axis=1).mean()


def _squared(z: np.ndarray, y: np.ndarray) -> float:
    return ((z - y) ** 2).mean()


def _absolute(z: np.ndarray, y: np.ndarray) -> float:
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


def _gaussian(z: np.ndarray, y: np.ndarray, eps: float = 1e-6) -> float:
    mean, variance = np.split(z, 2, axis=1)
    variance = np.maximum(np.exp(variance), eps)
    return (np.log(variance) / 2 + (y - mean) ** 2 / variance / 2).mean()


BALANCED = tuple(100 / (3 * np.array(COUNTS)))
EFFECTIVE = tuple(0.001 / (1 - 0.999 ** np.array(COUNTS)))
OTHERS = (3.0, 1.0, 0.5)

CLASSIFICATION = [
    Case("cross_entropy", {}, _cross_entropy),
    Case("cross_entropy", {"class_weights": OTHERS}, partial(_cross_entropy, weights=OTHERS)),
    Case(
        "cross_entropy",
        {"class_weights": "balanced", "label_smoothing": 0.3},
        partial(_cross_entropy, weights=BALANCED, smoothing=0.3),
    ),
    Case("label_smoothing", {}, partial(_cross_entropy, smoothing=0.1)),
    Case("balanced", {}, partial(_cross_entropy, weights=BALANCED)),
    Case("class_balanced", {}, partial(_cross_entropy, weights=EFFECTIVE)),
    Case("class_balanced", {"beta": 0.0}, _cross_entropy),
    Case("logit_adjustment", {}, _adjusted),
    Case("logit_adjustment", {"tau": 0.5}, partial(_adjusted, tau=0.5)),
    Case("focal", {}, _focal),
    Case("focal", {"gamma": 0.5}, partial(_focal, gamma=0.5)),
    Case("focal", {"class_weights": "balanced"}, partial(_focal, weights=BALANCED)),
    Case("poly1", {}, _poly1),
    Case("poly1", {"epsilon": -1.0}, partial(_poly1, epsilon=-1.0)),
    Case("poly1", {"epsilon": 5.0}, partial(_poly1, epsilon=5.0)),
    Case("generalized_cross_entropy", {}, _generalized),
    Case("generalized_cross_entropy", {"q": 1.0}, partial(_generalized, q=1.0)),
    Case("generalized_cross_entropy", {"q": 0.1}, partial(_generalized, q=0.1)),
    Case("symmetric_cross_entropy", {}, _symmetric),
    Case("symmetric_cross_entropy", {"alpha": 2.0, "beta": 0.5}, partial(_symmetric, alpha=2.0, beta=0.5)),
    Case("symmetric_cross_entropy", {"alpha": 0.0}, partial(_symmetric, alpha=0.0)),
    Case("asymmetric", {}, _asymmetric),
    Case(
        "asymmetric",
        {"gamma_positive": 1.0, "gamma_negative": 2.0, "label_smoothing": 0.3},
        partial(_asymmetric, positive=1.0, negative=2.0, smoothing=0.3),
    ),
    Case("bce", {}, _bce),
    Case("multi_margin", {}, _multi_margin),
    Case("multi_margin", {"p": 2, "margin": 0.5}, partial(_multi_margin, p=2, margin=0.5)),
    Case("brier", {}, _brier),
]

REGRESSION = [
    Case("mse", {}, _squared),
    Case("mae", {}, _absolute),
    Case("huber", {}, lambda z, y: special.huber(1.0, z - y).mean()),
    Case("huber", {"delta": 0.3}, lambda z, y: special.huber(0.3, z - y).mean()),
    Case("smooth_l1", {}, _smooth_l1),
    Case("smooth_l1", {"beta": 0.3}, partial(_smooth_l1, beta=0.3)),
    Case("log_cosh", {}, lambda z, y: np.log(np.cosh(z - y)).mean()),
    Case("pinball", {}, _pinball),
    Case("pinball", {"quantile": 0.9}, partial(_pinball, quantile=0.9)),
    Case("poisson", {}, _poisson),
    Case("gamma", {}, _gamma),
    Case("tweedie", {}, _tweedie),
    Case("tweedie", {"power": 1.2}, partial(_tweedie, p=1.2)),
    Case("gaussian_nll", {}, _gaussian),
    Case("gaussian_nll", {"eps": 0.5}, partial(_gaussian, eps=0.5)),
    Case("cauchy", {}, lambda z, y: np.log(1 + (z - y) ** 2 / 2).mean()),
    Case("cauchy", {"scale": 0.2}, lambda z, y: np.log(1 + ((z - y) / 0.2) ** 2 / 2).mean()),
]

WITHOUT_CASE = sorted({*WORDS} - {case.word for case in [*CLASSIFICATION, *REGRESSION]})
"""Losses in conf/ that no case above compares with a formula."""
CLASSIFICATION_WORDS = sorted({case.word for case in CLASSIFICATION})
REGRESSION_WORDS = sorted({case.word for case in REGRESSION})


def width(loss: Any, outputs: int) -> int:
    return outputs * facts_of(loss).outputs_per_target
