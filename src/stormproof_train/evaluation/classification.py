"""What predicted probabilities of classes are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from stormproof_train.evaluation.intervals import Statistic
from stormproof_train.evaluation.predictions import Predictions

BINS = 15


@dataclass(frozen=True)
class OfClass:
    """One class against all others; ``precision`` is 0 where it was never predicted, ``recall`` where it never came.

    ``roc_auc`` and ``average_precision`` are None where it never came, or nothing else did.
    """

    samples: int
    precision: float
    recall: float
    f1: float
    roc_auc: float | None
    average_precision: float | None


@dataclass(frozen=True)
class Bin:
    """The samples whose most probable class has a probability in (low, high]."""

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


def headline(predictions: Predictions) -> dict[str, Statistic]:
    r"""The numbers that stand for all, each as a function of the samples that it is of.

    Accuracy, and F1, the mean over the classes that came or were predicted. Of probabilities also the Brier score
    :math:`\frac1n \sum_i \sum_c (p_{ic} - [y_i = c])^2`, from 0 to 2, and the negative log-likelihood
    :math:`-\frac1n \sum_i \log p_{i y_i}`, in which no probability counts for less than the smallest of float32.

    References:
        Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    target, said, classes = predictions.target, predictions.classes, predictions.outputs.shape[1]
    right = (said == target).astype(np.float64)

    def f1(drawn: NDArray[Any]) -> NDArray[Any]:
        both = _counted(target[drawn], classes, right[drawn])
        twice = _counted(target[drawn], classes) + _counted(said[drawn], classes)
        each = 2 * both / np.maximum(twice, 1)
        return each.sum(-1) / (twice > 0).sum(-1)

    found: dict[str, Statistic] = {"accuracy": lambda drawn: right[drawn].mean(-1), "f1": f1}
    if predictions.kind == "scores":
        return found
    probabilities = predictions.outputs.astype(np.float64)
    of_target = probabilities[np.arange(len(target)), target]
    squared = (probabilities**2).sum(1) - 2 * of_target + 1
    unlikely = -np.log(np.maximum(of_target, np.finfo(np.float32).smallest_subnormal))
    return found | {
        "brier": lambda drawn: squared[drawn].mean(-1),
        "negative_log_likelihood": lambda drawn: unlikely[drawn].mean(-1),
    }


def of_classes(predictions: Predictions) -> list[OfClass]:
    """Each class against all others, by scikit-learn."""
    target, classes = predictions.target, predictions.outputs.shape[1]
    scores: Any = metrics.precision_recall_fscore_support(  # whose types are those of averages
        target,
        predictions.classes,
        labels=range(classes),
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    found = []
    for number, (precision, recall, f1, samples) in enumerate(zip(*scores, strict=True)):
        score, truth = predictions.outputs[:, number], target == number
        ranked = 0 < truth.sum() < len(truth)
        found.append(
            OfClass(
                int(samples), float(precision), float(recall), float(f1),
                float(metrics.roc_auc_score(truth, score)) if ranked else None,
                float(metrics.average_precision_score(truth, score)) if ranked else None,
            )
        )  # fmt: skip
    return found


def confusion(predictions: Predictions) -> list[list[int]]:
    """How many samples of each class, a row, were taken for each class, a column."""
    classes = range(predictions.outputs.shape[1])
    return metrics.confusion_matrix(predictions.target, predictions.classes, labels=classes).tolist()


def reliability(predictions: Predictions) -> list[Bin]:
    """How often those are right that are so sure, in 15 bins; empty ones are left out.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.
    """
    confidence = predictions.outputs.max(1).astype(np.float64)
    right, place = predictions.classes == predictions.target, _bin_of(confidence)
    return [
        Bin(
            number / BINS, (number + 1) / BINS, int((place == number).sum()),
            float(confidence[place == number].mean()), float(right[place == number].mean()),
        )
        for number in np.unique(place).tolist()
    ]  # fmt: skip


def calibration_error(bins: list[Bin]) -> float:
    r"""The expected calibration error, :math:`\sum_b \frac{n_b}{n} |\text{accuracy}_b - \text{confidence}_b|`.

    It is never too small: chance alone makes bins differ. An interval by drawing samples again would not hold it.
    """
    return sum(each.samples * abs(each.accuracy - each.confidence) for each in bins) / sum(
        each.samples for each in bins
    )


def _bin_of(confidence: NDArray[Any]) -> NDArray[Any]:
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _counted(numbers: NDArray[Any], kinds: int, weights: NDArray[Any] | None = None) -> NDArray[Any]:
    """How often each number from 0 to ``kinds`` - 1 comes in each row of (…, n), or its weights: (…, kinds)."""
    rows = numbers.reshape(-1, numbers.shape[-1])
    apart = (rows + kinds * np.arange(len(rows))[:, None]).ravel()
    counts = np.bincount(apart, None if weights is None else weights.ravel(), minlength=kinds * len(rows))
    return counts.reshape(*numbers.shape[:-1], kinds)
