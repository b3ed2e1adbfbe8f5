"""All that is computed from the predictions of one run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from stormproof_train.evaluation import classification, regression
from stormproof_train.evaluation.intervals import bootstrapped, of_share
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
    kind = classification if predictions.is_classification else regression
    headline = {
        name: asdict(bootstrapped(statistic, len(predictions)))
        for name, statistic in kind.headline(predictions).items()
    }
    found: dict[str, Any] = {"samples": len(predictions), "headline": headline}
    if not predictions.is_classification:
        return found | {"residuals": [asdict(each) for each in regression.residuals(predictions)]}
    if headline["accuracy"]["low"] is None:  # all right, or all wrong
        right = int((predictions.classes == predictions.target).sum())
        headline["accuracy"] = asdict(of_share(right, len(predictions)))
    found |= {
        "classes": [asdict(each) for each in classification.of_classes(predictions)],
        "confusion": classification.confusion(predictions),
    }
    if predictions.kind == "scores":
        return found
    bins = classification.reliability(predictions)
    return found | {
        "reliability": [asdict(each) for each in bins],
        "calibration_error": classification.calibration_error(bins),
    }
