"""Writes the predictions of a test and their evaluation to a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from stormproof.checkpoint import atomic_write
from stormproof_train.console import print_line
from stormproof_train.evaluation.baselines import add_baselines
from stormproof_train.evaluation.evaluate import evaluate
from stormproof_train.evaluation.prediction_store import PredictionStore
from stormproof_train.evaluation.records import Evaluation


def save_test_results(
    store: PredictionStore,
    folder: Path,
    metadata: Mapping[str, Any] | None = None,
    data: pl.LightningDataModule | None = None,
) -> Evaluation | None:
    """Writes ``predictions.npz`` and ``evaluation.json``. Prints a warning if either is not possible.

    Args:
        store: Predictions of the test split, gathered on rank 0.
        folder: Folder of the run or of the evaluation.
        metadata: Additional content of ``evaluation.json``. None adds nothing.
        data: Data module of the test split. If it is a table, the network is compared with baselines. None skips the
            comparison.

    Returns:
        The evaluation, or None if none was written.
    """
    try:
        predictions = store.predictions()
    except ValueError as error:
        print_line(f"warning: predictions and intervals were not saved: {error}")
        return None
    predictions.save(folder / "predictions.npz")
    try:
        evaluation = evaluate(predictions)
        if evaluation is not None and data is not None:
            evaluation = add_baselines(evaluation, predictions, data)
        content = None if evaluation is None else json.dumps({**(metadata or {}), **evaluation}, allow_nan=False)
    except Exception as error:  # noqa: BLE001 (an error here must not end a run that has finished)
        print_line(f"warning: the predictions in {folder / 'predictions.npz'} could not be evaluated: {error!r}")
        return None
    if evaluation is None or content is None:
        print_line("warning: some predictions or targets are not finite, so no evaluation was written")
        return None
    with atomic_write(folder / "evaluation.json") as file:
        file.write(f"{content}\n".encode())
    return evaluation


def extract_intervals(evaluation: Evaluation) -> dict[str, list[float]]:
    """Returns the ends of the 95% intervals by metric, for the headline metrics that have an interval."""
    return {
        name: [metric["low"], metric["high"]]
        for name, metric in evaluation["headline"].items()
        if metric["low"] is not None and metric["high"] is not None
    }


def extract_baselines(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Returns the metrics of the linear model, by its name, and of the ``constant``. Empty without baselines."""
    baseline_metrics = evaluation.get("baselines")
    if baseline_metrics is None:
        return {}
    return {
        baseline_metrics["linear"]["model"]: baseline_metrics["linear"]["headline"],
        "constant": baseline_metrics["constant"]["headline"],
    }
