"""Compares the network with a constant and with a linear model on the test split of a table."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from stormproof_train.console import print_line
from stormproof_train.data.in_memory import InMemoryDataModule, Split
from stormproof_train.evaluation import classification, regression
from stormproof_train.evaluation.comparison import compare
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.records import Baselines, ConstantBaseline, Evaluation, LinearBaseline

PENALTIES = 10.0 ** np.arange(4, -3, -1)
"""Candidates for alpha of ridge regression and 1 / C of logistic regression. The strongest of equals is used."""
MAX_ROWS = 10_000
"""Maximum number of rows for the fit, and for the choice of the penalty."""
MAX_WORK = 5_000_000
"""Maximum product of rows, inputs and outputs of a fit: a few seconds for all fits (``RECORDS.md``)."""
MAX_COMPARED_SAMPLES = 5_000
"""Test samples for the interval of the difference. The time of the bootstrap grows with their square."""


def add_baselines(evaluation: Evaluation, predictions: Predictions, data: pl.LightningDataModule) -> Evaluation:
    """Adds ``baselines`` to an evaluation if the data are a table in memory: samples are vectors.

    If a baseline cannot be computed, prints a warning and returns the evaluation as it is.

    Args:
        evaluation: From :func:`stormproof_train.evaluation.evaluate.evaluate`.
        predictions: Predictions that were evaluated.
        data: Data module whose splits were read.

    Returns:
        The evaluation.
    """
    if not isinstance(data, InMemoryDataModule) or len(data.spec.input_shape) != 1:
        return {**evaluation}
    try:
        train, validation, test = (data.get_split(name) for name in ("train", "validation", "test"))
        baselines: Baselines = {
            "constant": _evaluate_constant(predictions),
            "linear": _evaluate_linear(predictions, train, validation, test[0]),
        }
        json.dumps(baselines, allow_nan=False)  # raises ValueError if a number is not finite
    except Exception as error:  # noqa: BLE001 (an error here must not end a run that has finished)
        problem = str(error).partition("\n")[0] or type(error).__name__
        print_line(f"warning: the baselines could not be computed: {problem}")
        return {**evaluation}
    return {**evaluation, "baselines": baselines}


def _evaluate_constant(predictions: Predictions) -> ConstantBaseline:
    """Returns the metrics of the best constant: the mean or the most common class of the test targets."""
    target = predictions.target
    if not predictions.is_classification:
        mean = np.broadcast_to(target.astype(np.float64).mean(0), target.shape)
        return {"headline": _compute_headline(dataclasses.replace(predictions, outputs=mean))}
    counts = np.bincount(target, minlength=predictions.outputs.shape[1])
    scores = np.broadcast_to(counts == counts.max(), predictions.outputs.shape)
    return {"headline": _compute_headline(dataclasses.replace(predictions, kind="scores", outputs=scores))}


def _evaluate_linear(predictions: Predictions, train: Split, validation: Split, test_inputs: Any) -> LinearBaseline:
    num_outputs = predictions.outputs.shape[1]
    rows = min(MAX_ROWS, MAX_WORK // (train[0].shape[1] * num_outputs))
    if rows < min(len(train[0]), 10 * num_outputs):
        raise ValueError(
            f"a linear model of {train[0].shape[1]:,} inputs and {num_outputs:,} outputs takes too long to fit"
        )
    inputs, targets = _evenly_spaced_rows(train, rows)
    model = _fit_linear_model(predictions.is_classification, inputs, targets, *_evenly_spaced_rows(validation, rows))
    # with `limit_test_batches`, only the first samples were tested
    linear_outputs = _predict_outputs(model, test_inputs[: len(predictions)].double().numpy(), num_outputs)
    linear = dataclasses.replace(predictions, outputs=linear_outputs)
    metric = "accuracy" if predictions.is_classification else "r2"
    indices = _evenly_spaced(len(predictions), MAX_COMPARED_SAMPLES)
    comparison = compare(_select_rows(predictions, indices), _select_rows(linear, indices), {metric})
    return {
        "model": "logistic regression" if predictions.is_classification else "ridge regression",
        "rows": len(inputs),
        "training_rows": len(train[0]),
        "headline": _compute_headline(linear),
        "difference": {"metric": metric, "samples": len(indices), **comparison["differences"][metric]},
    }


def _fit_linear_model(
    is_classification: bool,
    inputs: NDArray[Any],
    targets: NDArray[Any],
    validation_inputs: NDArray[Any],
    validation_targets: NDArray[Any],
) -> Ridge | LogisticRegression:
    """Returns the linear model with the penalty that is best on validation."""
    models = [LogisticRegression(C=1 / penalty) if is_classification else Ridge(alpha=penalty) for penalty in PENALTIES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # validation chooses, whether a fit has converged or not
        return max(models, key=lambda model: model.fit(inputs, targets).score(validation_inputs, validation_targets))


def _predict_outputs(model: Ridge | LogisticRegression, inputs: NDArray[Any], num_outputs: int) -> NDArray[Any]:
    """Returns predicted values or probabilities (rows, outputs). A class without training rows has probability 0."""
    if isinstance(model, Ridge):
        return model.predict(inputs).reshape(-1, num_outputs)
    probabilities = np.zeros((len(inputs), num_outputs))
    probabilities[:, model.classes_] = model.predict_proba(inputs)
    return probabilities


def _evenly_spaced_rows(split: Split, max_rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns inputs and targets of at most ``max_rows`` rows, spread evenly over a split."""
    indices = _evenly_spaced(len(split[0]), max_rows)
    targets = split[1][indices]
    return split[0][indices].double().numpy(), (targets.double() if targets.is_floating_point() else targets).numpy()


def _evenly_spaced(num_samples: int, max_samples: int) -> NDArray[np.int64]:
    return np.linspace(0, num_samples - 1, min(num_samples, max_samples)).astype(np.int64)


def _select_rows(predictions: Predictions, rows: NDArray[np.int64]) -> Predictions:
    samples = None if predictions.samples is None else predictions.samples[rows]
    return Predictions(predictions.kind, predictions.outputs[rows], predictions.target[rows], samples)


def _compute_headline(predictions: Predictions) -> dict[str, float]:
    task_module = classification if predictions.is_classification else regression
    all_indices = np.arange(len(predictions))
    # rounded, so that the R² of a constant is 0 and not 1e-16
    return {
        name: round(float(statistic(all_indices)), 12) + 0.0
        for name, statistic in task_module.headline(predictions).items()
    }
