"""Compares the network with a constant and with a linear model on the test split of a table."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from stormproof_train.console import say
from stormproof_train.data.in_memory import InMemory, Split
from stormproof_train.evaluation import classification, regression
from stormproof_train.evaluation.comparison import compare
from stormproof_train.evaluation.predictions import Predictions

PENALTIES = 10.0 ** np.arange(4, -3, -1)
"""Candidates for alpha of ridge regression and 1 / C of logistic regression. The strongest of equals is used."""
MOST_ROWS = 10_000
"""Maximum number of rows for the fit, and for the choice of the penalty."""
MOST_WORK = 5_000_000
"""Maximum product of rows, inputs and outputs of a fit: a few seconds for all fits (``RECORDS.md``)."""
MOST_COMPARED = 5_000
"""Test samples for the interval of the difference. The time of the bootstrap grows with their square."""


def with_baselines(
    evaluation: Mapping[str, Any], predictions: Predictions, data: pl.LightningDataModule
) -> dict[str, Any]:
    """Adds ``baselines`` to an evaluation if the data are a table in memory: samples are vectors.

    If a baseline cannot be computed, prints a warning and returns the evaluation as it is.

    Args:
        evaluation: From :func:`stormproof_train.evaluation.evaluate.evaluate`.
        predictions: Predictions that were evaluated.
        data: Data module whose splits were read.

    Returns:
        The evaluation. ``baselines`` has ``constant`` with its ``headline``, metric to value, and ``linear`` with
        ``headline``, ``model``, ``rows``, ``training_rows`` and ``difference``, which is ``metric``, ``samples``, and
        ``value``, ``low`` and ``high`` of the network's metric minus that of the linear model.
    """
    if not isinstance(data, InMemory) or len(data.spec.input_shape) != 1:
        return dict(evaluation)
    try:
        train, validation, test = (data.split(name) for name in ("train", "validation", "test"))
        found = {"constant": _constant(predictions), "linear": _linear(predictions, train, validation, test[0])}
        json.dumps(found, allow_nan=False)  # raises ValueError if a number is not finite
    except Exception as error:  # noqa: BLE001 (an error here must not end a run that has finished)
        problem = str(error).partition("\n")[0] or type(error).__name__
        say(f"warning: the baselines could not be computed: {problem}")
        return dict(evaluation)
    return {**evaluation, "baselines": found}


def _constant(predictions: Predictions) -> dict[str, Any]:
    """Returns the metrics of the best constant: the mean or the most common class of the test targets."""
    target = predictions.target
    if not predictions.is_classification:
        mean = np.broadcast_to(target.astype(np.float64).mean(0), target.shape)
        return {"headline": _headline(dataclasses.replace(predictions, outputs=mean))}
    counts = np.bincount(target, minlength=predictions.outputs.shape[1])
    scores = np.broadcast_to(counts == counts.max(), predictions.outputs.shape)
    return {"headline": _headline(dataclasses.replace(predictions, kind="scores", outputs=scores))}


def _linear(predictions: Predictions, train: Split, validation: Split, test_inputs: Any) -> dict[str, Any]:
    outputs = predictions.outputs.shape[1]
    rows = min(MOST_ROWS, MOST_WORK // (train[0].shape[1] * outputs))
    if rows < min(len(train[0]), 10 * outputs):
        raise ValueError(
            f"a linear model of {train[0].shape[1]:,} inputs and {outputs:,} outputs takes too long to fit"
        )
    inputs, targets = _evenly_spaced_rows(train, rows)
    model = _fitted(predictions.is_classification, inputs, targets, *_evenly_spaced_rows(validation, rows))
    # with `limit_test_batches`, only the first samples were tested
    predicted = _outputs(model, test_inputs[: len(predictions)].double().numpy(), outputs)
    linear = dataclasses.replace(predictions, outputs=predicted)
    metric = "accuracy" if predictions.is_classification else "r2"
    picked = _evenly_spaced(len(predictions), MOST_COMPARED)
    compared = compare(_rows(predictions, picked), _rows(linear, picked), {metric})
    return {
        "model": "logistic regression" if predictions.is_classification else "ridge regression",
        "rows": len(inputs),
        "training_rows": len(train[0]),
        "headline": _headline(linear),
        "difference": {"metric": metric, "samples": len(picked), **compared["differences"][metric]},
    }


def _fitted(
    classifies: bool,
    inputs: NDArray[Any],
    targets: NDArray[Any],
    inputs_to_choose: NDArray[Any],
    targets_to_choose: NDArray[Any],
) -> Ridge | LogisticRegression:
    """Returns the linear model with the penalty that is best on validation."""
    models = [LogisticRegression(C=1 / penalty) if classifies else Ridge(alpha=penalty) for penalty in PENALTIES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # validation chooses, whether a fit has converged or not
        return max(models, key=lambda model: model.fit(inputs, targets).score(inputs_to_choose, targets_to_choose))


def _outputs(model: Ridge | LogisticRegression, inputs: NDArray[Any], outputs: int) -> NDArray[Any]:
    """Returns predicted values or probabilities (rows, outputs). A class without training rows has probability 0."""
    if isinstance(model, Ridge):
        return model.predict(inputs).reshape(-1, outputs)
    probabilities = np.zeros((len(inputs), outputs))
    probabilities[:, model.classes_] = model.predict_proba(inputs)
    return probabilities


def _evenly_spaced_rows(split: Split, most: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns inputs and targets of at most ``most`` rows, spread evenly over a split."""
    picked = _evenly_spaced(len(split[0]), most)
    targets = split[1][picked]
    return split[0][picked].double().numpy(), (targets.double() if targets.is_floating_point() else targets).numpy()


def _evenly_spaced(samples: int, most: int) -> NDArray[np.int64]:
    return np.linspace(0, samples - 1, min(samples, most)).astype(np.int64)


def _rows(predictions: Predictions, rows: NDArray[np.int64]) -> Predictions:
    samples = None if predictions.samples is None else predictions.samples[rows]
    return Predictions(predictions.kind, predictions.outputs[rows], predictions.target[rows], samples)


def _headline(predictions: Predictions) -> dict[str, float]:
    kind = classification if predictions.is_classification else regression
    everything = np.arange(len(predictions))
    # rounded, so that the R² of a constant is 0 and not 1e-16
    return {name: round(float(of(everything)), 12) + 0.0 for name, of in kind.headline(predictions).items()}
