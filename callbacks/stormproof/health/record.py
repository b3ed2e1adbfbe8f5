"""Measurements of a run as plain numbers. All rules of ``stormproof.health`` read only these."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

from stormproof.gradients.measurement import GradientMeasurement
from stormproof.health.confidence_interval import mean_and_standard_error
from stormproof.health.observers.rank_compute_time import RankComputeTimes
from stormproof.health.observers.step_trace import ActivationCall, BroadcastMismatch, InputStats, LayerCall
from stormproof.units.unit_activity import UnitActivity

LARGE_INPUT, SMALL_INPUT, MAX_SCALE_RATIO = 10.0, 1e-3, 300.0
"""Root mean squares of the input that usual initializations do not suit, and the maximum ratio of the scales of two
features."""
COLLAPSED_NORM_SHARE = 0.05
"""Share of the first weight norm of a layer below which its weights have collapsed."""


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
        unreachable_share: Share of target entries outside the range of ``producer``.
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


@dataclass(frozen=True)
class Comparison:
    """Loss of a batch, of the best constant prediction for it, and of its predictions with permuted targets."""

    step: int
    epoch: int
    loss: float
    constant_loss: float | None
    permuted_loss: float | None


@dataclass(frozen=True)
class TracedStep:
    """Measurements of a traced batch after ``step`` optimizer steps."""

    step: int
    layer_calls: tuple[LayerCall, ...] = ()
    activation_calls: tuple[ActivationCall, ...] = ()
    broadcast_mismatches: tuple[BroadcastMismatch, ...] = ()
    predictions: tuple[PredictionStats, ...] = ()


@dataclass(frozen=True)
class ParameterGroup:
    """Learning rates of a parameter group.

    Attributes:
        optimizer: Index of its optimizer.
        name: Name in findings.
        lr: Current learning rate.
        initial_lr: First learning rate.
        max_lr: Highest learning rate so far.
        base_lr: Learning rate that a scheduler multiplies. Without a scheduler, the highest one so far.
        zero_since: Step since which the learning rate is zero, or negligible compared to the highest one. None if it
            is not.
    """

    optimizer: int
    name: str
    lr: float
    initial_lr: float
    max_lr: float
    base_lr: float
    zero_since: int | None

    @property
    def is_rising(self) -> bool:
        """Returns whether the learning rate is in its warm-up."""
        return self.lr >= self.max_lr > self.initial_lr


@dataclass(frozen=True)
class NonFiniteOrigin:
    """Origin of the first NaN or infinity.

    Attributes:
        step: Number of optimizer steps before it.
        batch_idx: Index of the batch in its epoch.
        tensor: Name of the tensor.
        layer: Name of the layer. Empty for the batch.
        in_data: Whether the tensor is part of the batch.
    """

    step: int
    batch_idx: int
    tensor: str
    layer: str
    in_data: bool


@dataclass(frozen=True)
class ValidationPass:
    """Losses of a pass over the validation data.

    Attributes:
        step: Number of optimizer steps before it.
        losses: Losses of its batches. Empty if only a metric is known.
        loss: Mean of the losses, or the metric.
        training_loss: Mean training loss since the previous pass.
        samples: Number of samples. None if unknown.
    """

    step: int
    losses: tuple[float, ...]
    loss: float
    training_loss: float | None
    samples: int | None = None

    @property
    def standard_error(self) -> float:
        """Standard error of the mean loss."""
        return mean_and_standard_error(self.losses)[1] if len(self.losses) > 1 else 0.0

    def is_above(self, other: ValidationPass, *, is_sustained: bool = False) -> bool:
        """Returns whether the losses significantly exceed those of a pass over the same batches.

        Args:
            other: Pass to compare with.
            is_sustained: Whether other passes show the same, so that a lower significance is enough.
        """
        if not self.losses:
            return self.loss > other.loss
        if len(self.losses) == len(other.losses) > 3:
            mean, error = mean_and_standard_error(
                [own_loss - other_loss for own_loss, other_loss in zip(self.losses, other.losses, strict=True)]
            )
            return mean > (3 if is_sustained or len(self.losses) > 9 else 5) * error
        return self.loss > other.loss + 3 * math.hypot(self.standard_error, other.standard_error)


@dataclass
class Record:
    """Measurements of a run.

    Attributes:
        step: Number of optimizer steps so far.
        epoch: Number of epochs so far.
        planned_steps: Number of optimizer steps of the whole run. None if unlimited.
        batches: Number of batches so far.
        accumulate_grad_batches: Number of batches per optimizer step.
        backward_batches: Number of batches with a backward pass.
        observed_optimizer_step: Whether an optimizer step was observed by a hook.
        has_single_loss: Whether each batch has at most one backward pass. Rules ignore the loss otherwise.
        uses_grad_scaler: Whether a gradient scaler skips steps with NaN or infinity.
        first_losses: Losses of the first batches.
        recent_losses: Step and loss of the last batches.
        traces: Measurements of traced batches.
        comparisons: Losses of traced batches, compared with other predictions and targets.
        gradients: Gradient measurements.
        weight_stats: Norm and sum of the weights of each layer, by step.
        layer_order: Layers with weights in call order.
        input_stats: Statistics of the input of the first layer. None if it is not numeric.
        groups: Parameter groups.
        unoptimized_entries: Number of entries with a gradient and without an optimizer, by layer.
        foreign_parameters: Number of parameters in optimizers that the module does not own.
        unregistered_entries: Number of entries of parameters that the step uses, in no submodule and no optimizer.
        duplicated_layers: Layers whose parameters are in two groups.
        layers_with_gradient: Layers that had a nonzero gradient.
        first_gradient_step: Optimizer steps before a layer was first seen with a gradient.
        detached_layers: Layers that the loss depends on without a gradient, with the function that cut the graph.
        steps_without_gradient: Number of traced steps in which no parameter had a gradient.
        unused_layers: Layers in an optimizer that the loss does not depend on.
        frozen_layers: Layers without a parameter that requires a gradient.
        retained_gradients: Number of steps with gradients of the previous step and number of checked steps, by
            optimizer.
        constant_target_samples: Number of samples with identical targets. None once two targets differ.
        targets_depend_on_inputs: Whether a statistical test finds a dependence of the targets on the inputs. None if
            unknown.
        unit_activity: Unit activity of the current epoch or of the last validation pass, by place.
        lagging_units: Activity in the validation pass of units that are active in training, by place. None until a
            place was measured in both.
        non_finite_origin: Origin of the first NaN or infinity. None without one.
        validations: Validation passes.
        batch_waits: Seconds of waiting and of work of the last batches.
        loader_name: Class name of the training loader.
        num_workers: Number of worker processes of the loader. None if it is not a torch ``DataLoader``.
        rank_times: Compute times of the ranks. None for a single rank.
        replica_difference: Largest relative difference of the sums of the weights between ranks.
    """

    step: int = 0
    epoch: int = 0
    planned_steps: int | None = None
    batches: int = 0
    accumulate_grad_batches: int = 1
    backward_batches: int = 0
    observed_optimizer_step: bool = False
    has_single_loss: bool = True
    uses_grad_scaler: bool = False
    first_losses: list[float] = field(default_factory=list)
    recent_losses: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=512))
    traces: list[TracedStep] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    gradients: list[GradientMeasurement] = field(default_factory=list)
    weight_stats: dict[int, dict[str, tuple[float, float]]] = field(default_factory=dict)
    layer_order: list[str] = field(default_factory=list)
    input_stats: InputStats | None = None
    groups: list[ParameterGroup] = field(default_factory=list)
    unoptimized_entries: dict[str, int] = field(default_factory=dict)
    foreign_parameters: int = 0
    unregistered_entries: int = 0
    duplicated_layers: list[str] = field(default_factory=list)
    layers_with_gradient: set[str] = field(default_factory=set)
    first_gradient_step: int = 0
    detached_layers: dict[str, str] = field(default_factory=dict)
    steps_without_gradient: int = 0
    unused_layers: list[str] = field(default_factory=list)
    frozen_layers: list[str] = field(default_factory=list)
    retained_gradients: dict[int, tuple[int, int]] = field(default_factory=dict)
    constant_target_samples: int | None = 0
    targets_depend_on_inputs: bool | None = None
    unit_activity: dict[str, UnitActivity] = field(default_factory=dict)
    lagging_units: dict[str, UnitActivity] | None = None
    non_finite_origin: NonFiniteOrigin | None = None
    validations: list[ValidationPass] = field(default_factory=list)
    batch_waits: list[tuple[float, float]] = field(default_factory=list)
    loader_name: str = "DataLoader"
    num_workers: int | None = 0
    rank_times: RankComputeTimes | None = None
    replica_difference: float = 0.0

    @property
    def has_stepped(self) -> bool:
        """Returns whether an optimizer has stepped. Lightning does not count all steps in manual optimization."""
        return self.observed_optimizer_step or self.step > 0

    @property
    def has_badly_scaled_inputs(self) -> bool:
        """Returns whether the scale, offset or feature scales of the input are extreme and no norm follows."""
        stats = self.input_stats
        if stats is None or stats.is_normalized:
            return False
        is_uneven = stats.largest_scale > LARGE_INPUT and stats.largest_scale > MAX_SCALE_RATIO * stats.smallest_scale
        return (
            stats.rms > LARGE_INPUT
            or stats.rms < SMALL_INPUT
            or abs(stats.mean) > LARGE_INPUT * stats.largest_scale > 0
            or is_uneven
        )

    @property
    def predictions_by_loss(self) -> list[list[PredictionStats]]:
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

    @property
    def weight_norms(self) -> dict[int, dict[str, float]]:
        """Weight norm of each layer, by step."""
        return {
            step: {layer: norm for layer, (norm, _) in layers.items()} for step, layers in self.weight_stats.items()
        }

    def has_collapsed(self, layer: str | None) -> bool:
        """Returns whether the weights of a layer have shrunk below 5% of their first norm."""
        norms = [layers[layer][0] for layers in self.weight_stats.values() if layer in layers]
        return len(norms) > 1 and norms[-1] < COLLAPSED_NORM_SHARE * norms[0]

    def loss_fell_by(self, share: float) -> bool:
        """Returns whether the loss has fallen by more than this share of its first values."""
        recent_losses = [loss for _, loss in self.recent_losses if math.isfinite(loss)][-10:]
        return (
            len(self.first_losses) >= 5
            and bool(recent_losses)
            and fmean(recent_losses) < (1 - share) * fmean(self.first_losses[:5])
        )

    def add_weights(self, step: int, weights: dict[str, tuple[float, float]], max_count: int) -> None:
        """Adds the weights at the start of a step. Keeps the first four and the last ``max_count`` entries."""
        self.weight_stats[step] = weights
        for old_step in list(self.weight_stats)[4:-max_count]:
            del self.weight_stats[old_step]

    def add_validation(self, validation: ValidationPass, max_count: int) -> None:
        """Adds a validation pass. Keeps the best one and the last ``max_count`` ones."""
        passes = [*self.validations, validation]
        best = min(passes, key=lambda candidate: candidate.loss)
        self.validations = [candidate for candidate in passes[:-max_count] if candidate is best] + passes[-max_count:]

    def add_trace(self, trace: TracedStep, max_count: int) -> None:
        """Adds a traced step. Keeps the first four and the last ``max_count`` ones."""
        self.traces.append(trace)
        del self.traces[4:-max_count]
