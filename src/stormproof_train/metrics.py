"""Metrics per task, based on torchmetrics."""

from __future__ import annotations

import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from stormproof_train.data.spec import DataSpec


class MeanLoss(Metric):
    r"""Mean of a loss over samples, :math:`\sum n_i L_i / \sum n_i`, over all ranks.

    Here :math:`n_i` is the divisor of the loss :math:`L_i` of a batch: the number of samples, or their total weight.
    torchmetrics.MeanMetric ignores NaN or the weights. This class propagates losses that are not finite.
    """

    full_state_update = False
    total: torch.Tensor
    samples: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: torch.Tensor, samples: torch.Tensor | int) -> None:
        """Adds the mean ``loss`` of a batch (a scalar) with the weight ``samples``."""
        self.total += loss * samples
        self.samples += samples

    def compute(self) -> torch.Tensor:
        """Returns the mean so far."""
        return self.total / self.samples


class R2(Metric):
    r"""Coefficient of determination, :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2`, averaged over outputs.

    torchmetrics.R2Score sums squares of targets in float32, which loses precision if the mean is large, and treats a
    spread below 1e-4 as 0. This class sums squared distances from the running mean. If all targets are equal, the
    result is 0.

    Args:
        num_outputs: Number of network outputs per sample.

    Example:
        >>> metric = R2(num_outputs=1)
        >>> metric.update(torch.tensor([[1e6], [1e6 + 2]]), torch.tensor([[1e6], [1e6 + 4]]))
        >>> metric.compute().item()
        0.5

    References:
        Chan, Golub & LeVeque, Algorithms for computing the sample variance, 1983.
    """

    full_state_update = False
    higher_is_better = True
    samples: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    residual: torch.Tensor

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.add_state("samples", torch.zeros(1), dist_reduce_fx=None)  # None gathers all ranks, one row per rank
        self.add_state("mean", torch.zeros(num_outputs), dist_reduce_fx=None)
        self.add_state("spread", torch.zeros(num_outputs), dist_reduce_fx="sum")
        self.add_state("residual", torch.zeros(num_outputs), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Adds a batch of predictions and targets, both ``(batch, outputs)``."""
        samples, mean = len(target), target.mean(dim=0)
        total_samples, deviation = self.samples + samples, mean - self.mean
        self.spread += (target - mean).square().sum(dim=0) + deviation.square() * self.samples * samples / total_samples
        self.mean += deviation * samples / total_samples
        self.samples += samples
        self.residual += (target - preds).square().sum(dim=0)

    def compute(self) -> torch.Tensor:
        """Returns the mean over outputs."""
        samples, means = self.samples.reshape(-1, 1), self.mean.reshape(-1, len(self.residual))
        deviations = means - means[0]
        deviations = deviations - (samples * deviations).sum(dim=0) / samples.sum()
        spread = self.spread + (samples * deviations.square()).sum(dim=0)
        return torch.where(spread == 0, 0.0, 1 - self.residual / spread).mean()


def training_metrics(spec: DataSpec) -> MetricCollection:
    """Returns the headline metric only, because it is updated in every training step."""
    if spec.num_classes:
        return MetricCollection({"accuracy": _accuracy(spec.num_classes)})
    return MetricCollection({"rmse": MeanSquaredError(squared=False)})


def evaluation_metrics(spec: DataSpec) -> MetricCollection:
    """Returns the metrics that validation and test report in addition to the loss.

    Classification: accuracy (share of correct samples) and F1 (mean over the classes). Regression, in the unit of the
    target: root mean squared error, mean absolute error, and the coefficient of determination R².
    """
    if spec.num_classes:
        f1 = MulticlassF1Score(spec.num_classes, average="macro", validate_args=False)
        return MetricCollection({"accuracy": _accuracy(spec.num_classes), "f1": f1})
    return MetricCollection(
        {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError(), "r2": R2(spec.num_outputs)}
    )


def _accuracy(num_classes: int) -> MulticlassAccuracy:
    # average="micro" is the share of correct samples; the default, "macro", is the mean of the classes' recalls.
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)
