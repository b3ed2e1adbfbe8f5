"""The metrics of a task, by torchmetrics."""

from __future__ import annotations

from dataclasses import dataclass

from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from stormproof_train.data.spec import DataSpec


@dataclass(frozen=True)
class Headline:
    """The one number that ranks runs of a task."""

    name: str
    higher_is_better: bool


HEADLINE = {"classification": Headline("accuracy", True), "regression": Headline("rmse", False)}


def training_metrics(spec: DataSpec) -> MetricCollection:
    """The headline alone: it is updated in every training step."""
    if spec.num_classes:
        return MetricCollection({"accuracy": _accuracy(spec.num_classes)})
    return MetricCollection({"rmse": MeanSquaredError(squared=False)})


def evaluation_metrics(spec: DataSpec) -> MetricCollection:
    """What validation and test report besides the loss.

    Classification: accuracy (share of samples) and F1 (mean over the classes). Regression, in the target's own unit:
    root mean squared error, mean absolute error, and the coefficient of determination R².
    """
    if spec.num_classes:
        f1 = MulticlassF1Score(spec.num_classes, average="macro", validate_args=False)
        return MetricCollection({"accuracy": _accuracy(spec.num_classes), "f1": f1})
    return MetricCollection({"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError(), "r2": R2Score()})


def _accuracy(num_classes: int) -> MulticlassAccuracy:
    # average="micro" is the share of correct samples; the default, "macro", is the mean of the classes' recalls.
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)
