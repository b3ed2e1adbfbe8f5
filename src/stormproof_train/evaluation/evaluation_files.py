"""What a run keeps of its test: the predictions, and what they are worth."""

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
    """Writes ``predictions.npz`` and ``evaluation.json``, where there is something to say; says where there is not.

    Args:
        store: the pass over the split; rank 0's.
        folder: of the run, or of one evaluation.
        metadata: what was evaluated, where the folder does not say it.
        data: Data module of the test split. If it is a table, the network is compared with baselines. None compares
            with no baselines.

    Returns:
        The evaluation, as :func:`evaluate` gives it; None where there is none.
    """
    try:
        predictions = store.predictions()
    except ValueError as error:
        print_line(f"warning: no predictions are kept, and no intervals: {error}")
        return None
    predictions.save(folder / "predictions.npz")
    try:
        evaluation = evaluate(predictions)
        if evaluation is not None and data is not None:
            evaluation = add_baselines(evaluation, predictions, data)
        content = None if evaluation is None else json.dumps({**(metadata or {}), **evaluation}, allow_nan=False)
    except Exception as error:  # noqa: BLE001 (whatever it is, it must not cost a training that has ended)
        print_line(f"warning: the predictions in {folder / 'predictions.npz'} could not be evaluated: {error!r}")
        return None
    if evaluation is None or content is None:
        print_line("warning: the predictions or the targets are not all finite: no evaluation")
        return None
    with atomic_write(folder / "evaluation.json") as file:
        file.write(f"{content}\n".encode())
    return evaluation


def extract_intervals(evaluation: Evaluation) -> dict[str, list[float]]:
    """The ends of the 95% intervals of those headline numbers that have one, by name."""
    return {
        name: [metric["low"], metric["high"]]
        for name, metric in evaluation["headline"].items()
        if metric["low"] is not None and metric["high"] is not None
    }


def extract_baselines(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Returns the metrics of the linear model, by its name, and of the ``constant``; empty if there are none."""
    baseline_metrics = evaluation.get("baselines")
    if baseline_metrics is None:
        return {}
    return {
        baseline_metrics["linear"]["model"]: baseline_metrics["linear"]["headline"],
        "constant": baseline_metrics["constant"]["headline"],
    }
