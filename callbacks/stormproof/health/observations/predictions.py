"""Predictions and losses in traced steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PredictionStats:
    """Statistics of the prediction and the target of a loss in one batch.

    Attributes:
        loss: Name of the loss function. Empty for a custom function.
        loss_input: Expected input, see :data:`stormproof.health.observers.torch_losses.LOSS_INPUTS`. Empty if unknown.
        producer: Function that computed the values of the prediction. Empty if unknown.
        layer: Last layer before the prediction.
        outputs: Size of the second dimension. 1 for one-dimensional predictions.
        low: Smallest entry.
        high: Largest entry.
        sums_to_one: Whether the entries are probabilities of at least two classes along the second dimension.
        logs_sum_to_one: Whether the exponentials of the entries are.
        spread: Standard deviation over the samples, relative to the root mean square. None for a single sample.
        target_low: Smallest entry of the target.
        target_high: Largest entry of the target.
        unreachable_share: Share of target entries outside the range of the prediction.
        bounded_by: Function that bounds the prediction. Empty if unbounded or unknown.
        lower_bound: Lowest possible value of the prediction. ``-inf`` if unbounded or unknown.
        are_targets_multi_hot: Whether the targets of a cross-entropy are multi-hot (several ones per sample).
    """

    loss: str
    loss_input: str
    producer: str
    layer: str
    outputs: int
    low: float
    high: float
    sums_to_one: bool
    logs_sum_to_one: bool
    spread: float | None
    target_low: float
    target_high: float
    unreachable_share: float
    bounded_by: str = ""
    lower_bound: float = -math.inf
    are_targets_multi_hot: bool = False


@dataclass(frozen=True)
class Comparison:
    """Loss of a batch, compared with other predictions and other targets.

    Attributes:
        step: Number of optimizer steps after the batch.
        epoch: Epoch of the batch.
        loss: Loss of its predictions.
        constant_loss: Loss of the best constant prediction. None if unknown.
        permuted_loss: Mean loss of its predictions with permuted targets. None if unknown.
        other_terms: Other terms of the loss that ``training_step`` returned.
    """

    step: int
    epoch: int
    loss: float
    constant_loss: float | None
    permuted_loss: float | None
    other_terms: float = 0.0


@dataclass(frozen=True)
class LayerCall:
    """Call of a layer.

    Attributes:
        layer: Name of the layer.
        spread: Standard deviation of the output over the samples, relative to its root mean square. None if unknown.
    """

    layer: str
    spread: float | None


@dataclass(frozen=True)
class ActivationCall:
    """Call of a bounded activation: the layer before it and the share of saturated outputs."""

    layer: str
    function: str
    saturated_share: float


@dataclass(frozen=True)
class BroadcastMismatch:
    """A prediction and a target of different shapes that torch broadcast."""

    function: str
    prediction: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class TracedStep:
    """Measurements of a traced batch.

    Attributes:
        step: Number of completed optimizer steps at the end of the batch.
        layer_calls: Calls of layers.
        activation_calls: Calls of bounded activations.
        broadcast_mismatches: Predictions and targets of different shapes.
        predictions: Statistics of the arguments of each loss.
        norm_distances: Distance of the statistics of the batch from the running statistics of each batch norm, see
            :attr:`stormproof.health.observers.tracing.step_trace.StepTrace.norm_distances`.
    """

    step: int
    layer_calls: tuple[LayerCall, ...] = ()
    activation_calls: tuple[ActivationCall, ...] = ()
    broadcast_mismatches: tuple[BroadcastMismatch, ...] = ()
    predictions: tuple[PredictionStats, ...] = ()
    norm_distances: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """Predictions of a run.

    Attributes:
        traces: The first and the last traced steps.
        comparisons: Comparisons of the loss with other predictions and other targets, in the last traced steps.
    """

    traces: Sequence[TracedStep] = ()
    comparisons: Sequence[Comparison] = ()

    @property
    def by_loss(self) -> list[list[PredictionStats]]:
        """Statistics of the predictions in traced batches, grouped by loss and last layer."""
        calls: dict[tuple[str, str], list[PredictionStats]] = {}
        for trace in self.traces:
            for stats in trace.predictions:
                calls.setdefault((stats.loss, stats.layer), []).append(stats)
        return list(calls.values())

    @property
    def is_classification(self) -> bool:
        """Returns whether a loss expects logits or log-probabilities."""
        return any(
            stats.loss_input in {"logits", "log-probabilities"} for trace in self.traces for stats in trace.predictions
        )
