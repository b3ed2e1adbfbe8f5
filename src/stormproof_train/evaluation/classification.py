"""Computes classification metrics from predicted probabilities or scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from stormproof_train.evaluation.intervals import Statistic, mean_statistic
from stormproof_train.evaluation.predictions import Predictions

NUM_BINS = 15


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class against all others.

    Attributes:
        samples: Number of samples of the class.
        precision: 0 if the class was never predicted.
        recall: 0 if the class has no samples.
        f1: Harmonic mean of precision and recall.
        roc_auc: Area under the ROC curve. None if all samples or no samples are of the class.
        average_precision: Area under the precision-recall curve. None in the same cases.
    """

    samples: int
    precision: float
    recall: float
    f1: float
    roc_auc: float | None
    average_precision: float | None


@dataclass(frozen=True)
class ReliabilityBin:
    """Samples whose highest class probability is in (``low``, ``high``].

    Attributes:
        low: Lower end of the bin.
        high: Upper end of the bin.
        samples: Number of samples in the bin.
        confidence: Mean of their highest class probability.
        accuracy: Share of them that is classified correctly.
    """

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


def headline(predictions: Predictions) -> dict[str, Statistic]:
    r"""Returns the headline metrics, each as a function of sample indices.

    Accuracy, and F1 averaged over the classes that occur in the targets or predictions. For probabilities also the
    Brier score :math:`\frac1n \sum_i \sum_c (p_{ic} - [y_i = c])^2`, from 0 to 2, and the negative log-likelihood
    :math:`-\frac1n \sum_i \log p_{i y_i}`. Probabilities are clamped to the smallest positive float32 in the latter.

    References:
        Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    target, predicted_classes, num_classes = predictions.target, predictions.classes, predictions.outputs.shape[1]
    is_correct = predicted_classes == target
    statistics = {
        "accuracy": mean_statistic(is_correct.astype(np.float64)),
        "f1": _f1_statistic(target, predicted_classes, num_classes),
    }
    if predictions.kind == "scores":
        return statistics
    probabilities = predictions.outputs.astype(np.float64)
    target_probabilities = probabilities[np.arange(len(target)), target]
    brier_scores = (probabilities**2).sum(1) - 2 * target_probabilities + 1
    log_losses = -np.log(np.maximum(target_probabilities, np.finfo(np.float32).smallest_subnormal))
    return statistics | {
        "brier": mean_statistic(brier_scores),
        "negative_log_likelihood": mean_statistic(log_losses),
    }


def class_metrics(predictions: Predictions) -> list[ClassMetrics]:
    """Returns the metrics of each class against all others."""
    target, num_classes = predictions.target, predictions.outputs.shape[1]
    scores: Any = metrics.precision_recall_fscore_support(  # its stubs declare the types of averages
        target,
        predictions.classes,
        labels=range(num_classes),
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    results = []
    for class_index, (precision, recall, f1, samples) in enumerate(zip(*scores, strict=True)):
        score, is_class = predictions.outputs[:, class_index], target == class_index
        has_both = 0 < is_class.sum() < len(is_class)
        results.append(
            ClassMetrics(
                int(samples), float(precision), float(recall), float(f1),
                float(metrics.roc_auc_score(is_class, score)) if has_both else None,
                float(metrics.average_precision_score(is_class, score)) if has_both else None,
            )
        )  # fmt: skip
    return results


def confusion_matrix(predictions: Predictions) -> list[list[int]]:
    """Returns the number of samples by true class (rows) and predicted class (columns)."""
    classes = range(predictions.outputs.shape[1])
    return metrics.confusion_matrix(predictions.target, predictions.classes, labels=classes).tolist()


def reliability_bins(predictions: Predictions) -> list[ReliabilityBin]:
    """Returns the non-empty bins of the reliability diagram, out of 15 bins of equal width."""
    confidence = predictions.outputs.max(1).astype(np.float64)
    is_correct, bin_indices = predictions.classes == predictions.target, _bin_indices(confidence)
    return [
        ReliabilityBin(
            bin_index / NUM_BINS, (bin_index + 1) / NUM_BINS, int((bin_indices == bin_index).sum()),
            float(confidence[bin_indices == bin_index].mean()), float(is_correct[bin_indices == bin_index].mean()),
        )
        for bin_index in np.unique(bin_indices).tolist()
    ]  # fmt: skip


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    r"""Computes the expected calibration error, :math:`\sum_b \frac{n_b}{n} |\text{accuracy}_b - \text{confidence}_b|`.

    It is biased upwards, because bins differ by chance too. A bootstrap interval would not contain the true value.
    """
    return sum(
        reliability_bin.samples * abs(reliability_bin.accuracy - reliability_bin.confidence) for reliability_bin in bins
    ) / sum(reliability_bin.samples for reliability_bin in bins)


def _bin_indices(confidence: NDArray[Any]) -> NDArray[Any]:
    return np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)


def _f1_statistic(target: NDArray[Any], predicted_classes: NDArray[Any], num_classes: int) -> Statistic:
    """Returns F1 averaged over the classes that occur in the targets or predictions."""
    # wrong and correct samples of a class have different numbers, so that one count yields both
    target_numbers = target + num_classes * (predicted_classes == target)

    def sums(indices: NDArray[Any]) -> NDArray[Any]:
        """Returns the true positives of each class, then its targets plus its predictions (..., 2 * classes)."""
        wrong, correct = np.split(_count_values(target_numbers[indices], 2 * num_classes), 2, axis=-1)
        predicted = _count_values(predicted_classes[indices], num_classes)
        return np.concatenate([correct, wrong + correct + predicted], axis=-1)

    def f1(sums: NDArray[Any], _: int) -> NDArray[Any]:
        true_positives, denominators = np.split(sums, 2, axis=-1)
        class_f1 = 2 * true_positives / np.maximum(denominators, 1)
        return class_f1.sum(-1) / (denominators > 0).sum(-1)

    return Statistic(sums, f1)


def _count_values(numbers: NDArray[Any], num_values: int) -> NDArray[Any]:
    """Counts the values 0 to ``num_values - 1`` in each row of (..., n): (..., values)."""
    rows = numbers.reshape(math.prod(numbers.shape[:-1]), numbers.shape[-1])
    counts = np.stack([np.bincount(row, minlength=num_values) for row in rows])
    return counts.reshape(*numbers.shape[:-1], num_values)
