"""Computes the complete evaluation of the predictions of one run."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from stormproof_train.evaluation import classification, regression
from stormproof_train.evaluation.intervals import bootstrap_intervals, share_interval
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.records import Evaluation


def evaluate(predictions: Predictions) -> Evaluation | None:
    """Evaluates the predictions of a split.

    Returns:
        JSON-serializable values, or None if an output or a target is not finite.
    """
    if not (np.isfinite(predictions.outputs).all() and np.isfinite(predictions.target).all()):
        return None
    task_module = classification if predictions.is_classification else regression
    intervals = bootstrap_intervals(task_module.headline(predictions), len(predictions))
    headline = {name: interval.as_dict() for name, interval in intervals.items()}
    evaluation: Evaluation = {"samples": len(predictions), "headline": headline}
    if not predictions.is_classification:
        evaluation["residuals"] = [asdict(entry) for entry in regression.summarize_residuals(predictions)]
        return evaluation
    if headline["accuracy"]["low"] is None:  # all or no predictions are correct
        num_correct = int((predictions.classes == predictions.target).sum())
        headline["accuracy"] = share_interval(num_correct, len(predictions)).as_dict()
    evaluation["classes"] = [asdict(entry) for entry in classification.class_metrics(predictions)]
    evaluation["confusion"] = classification.confusion_matrix(predictions)
    if predictions.kind != "scores":
        bins = classification.reliability_bins(predictions)
        evaluation["reliability"] = [asdict(entry) for entry in bins]
        evaluation["calibration_error"] = classification.expected_calibration_error(bins)
    return evaluation
