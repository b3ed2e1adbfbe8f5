"""All that is computed from the predictions of one run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from stormproof_train.evaluation import classification, regression
from stormproof_train.evaluation.intervals import bootstrap_interval, share_interval
from stormproof_train.evaluation.predictions import Predictions


def evaluate(predictions: Predictions) -> dict[str, Any] | None:
    """The evaluation of a split, as plain values; None where a number is not finite, of which nothing can be said.

    Args:
        predictions: of all its samples.

    Returns:
        ``samples``; ``headline``, by name the ``value`` with ``low`` and ``high``, the ends of its 95% interval; of
        classification ``classes`` and ``confusion``, where there are probabilities also ``reliability`` and
        ``calibration_error``; of regression ``residuals``.
    """
    if not (np.isfinite(predictions.outputs).all() and np.isfinite(predictions.target).all()):
        return None
    task_module = classification if predictions.is_classification else regression
    headline = {
        name: asdict(bootstrap_interval(statistic, len(predictions)))
        for name, statistic in task_module.headline(predictions).items()
    }
    evaluation: dict[str, Any] = {"samples": len(predictions), "headline": headline}
    if not predictions.is_classification:
        return evaluation | {"residuals": [asdict(entry) for entry in regression.summarize_residuals(predictions)]}
    if headline["accuracy"]["low"] is None:  # all right, or all wrong
        num_correct = int((predictions.classes == predictions.target).sum())
        headline["accuracy"] = asdict(share_interval(num_correct, len(predictions)))
    evaluation |= {
        "classes": [asdict(entry) for entry in classification.class_metrics(predictions)],
        "confusion": classification.confusion_matrix(predictions),
    }
    if predictions.kind == "scores":
        return evaluation
    bins = classification.reliability_bins(predictions)
    return evaluation | {
        "reliability": [asdict(entry) for entry in bins],
        "calibration_error": classification.expected_calibration_error(bins),
    }
