"""The metrics of a task, by torchmetrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from stormproof_train.data.spec import DataSpec


@dataclass(frozen=True)
class Headline:
    """The one number that ranks runs of a task."""

    name: str
    higher_is_better: bool


HEADLINE = {"classification": Headline("accuracy", True), "regression": Headline("rmse", False)}


class MeanLoss(Metric):
    r"""The mean of a loss over samples, :math:`\sum n_i L_i / \sum n_i`, over all ranks.

    torchmetrics' own mean leaves NaN out, or forgets the weights: here a loss that is not finite shows.
    """

    full_state_update = False
    total: torch.Tensor
    samples: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: torch.Tensor, samples: int) -> None:
        """Adds a batch's mean ``loss`` (a scalar) over its ``samples``."""
        self.total += loss * samples
        self.samples += samples

    def compute(self) -> torch.Tensor:
        """The mean so far."""
        return self.total / self.samples


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
