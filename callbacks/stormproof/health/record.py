"""What is known of a training: all that the rules of ``stormproof.health`` look at, as plain numbers."""

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
"""Sizes of inputs for which no usual initialization is made; a ratio of two features' scales that is too large."""
COLLAPSED_NORM_SHARE = 0.05
"""The share of a layer's first norm below which its weights have gone."""


@dataclass(frozen=True)
class PredictionStats:
    """What the loss was called with, in one batch.

    Attributes:
        loss: the name of its function; empty for a callable of the user's.
        loss_input: what it takes, see :data:`stormproof.health.observers.torch_losses.LOSS_INPUTS`; empty if that is
            not known.
        made_by: the function that gave the prediction its values; empty if that is not known.
        layer: the last layer on the way to it.
        outputs: its size along the second dimension; 1 where there is none.
        low: its smallest entry.
        high: its largest.
        sums_to_one: whether it is probabilities along the second dimension, of two classes or more.
        logs_sum_to_one: whether its exponentials are.
        spread: the standard deviation between samples, relative to the size; None for a single sample.
        target_low: the smallest entry of the target.
        target_high: the largest.
        unreachable_share: the share of target entries beyond what ``made_by`` can give.
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
    """The loss of a batch beside what it would be: for the best constant prediction, and for others' targets."""

    step: int
    epoch: int
    loss: float
    constant_loss: float | None
    permuted_loss: float | None


@dataclass(frozen=True)
class Probe:
    """A batch that was looked at closely, after ``step`` optimizer steps."""

    step: int
    layer_calls: tuple[LayerCall, ...] = ()
    activation_calls: tuple[ActivationCall, ...] = ()
    broadcast_mismatches: tuple[BroadcastMismatch, ...] = ()
    predictions: tuple[PredictionStats, ...] = ()


@dataclass(frozen=True)
class ParameterGroup:
    """A parameter group.

    Attributes:
        optimizer: the number of its optimizer.
        name: what to call it.
        lr: its learning rate.
        initial_lr: the one that it began with.
        max_lr: the highest so far.
        base_lr: the one that a scheduler has multiples of; where there is none, the highest so far.
        zero_since: the step since which it is none, beside the highest; None where it is one.
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
        """Whether it warms up."""
        return self.lr >= self.max_lr > self.initial_lr


@dataclass(frozen=True)
class NonFiniteOrigin:
    """The first number that is not finite.

    Attributes:
        step: the optimizer steps that were done.
        batch_idx: the batch's number in its epoch.
        tensor: which one it was.
        layer: where; empty for the batch.
        in_data: whether it is the batch itself.
    """

    step: int
    batch_idx: int
    tensor: str
    layer: str
    in_data: bool


@dataclass(frozen=True)
class ValidationPass:
    """A pass over the validation data.

    Attributes:
        step: the optimizer steps that were done.
        losses: of its batches; empty where only a metric is known.
        loss: their mean, or the metric.
        training_loss: the mean loss of the training since the pass before.
        samples: Number of samples. None if unknown.
    """

    step: int
    losses: tuple[float, ...]
    loss: float
    training_loss: float | None
    samples: int | None = None

    @property
    def standard_error(self) -> float:
        """The standard error of the mean."""
        return mean_and_standard_error(self.losses)[1] if len(self.losses) > 1 else 0.0

    def is_above(self, other: ValidationPass, *, is_sustained: bool = False) -> bool:
        """Whether its losses are greater than those of a pass over the same batches, beyond noise.

        Args:
            other: the other one.
            is_sustained: whether more than this pass tells so, so that less of it is enough.
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
    """All of it.

    Attributes:
        step: the optimizer steps that are done.
        epoch: the epochs that are.
        planned_steps: the steps of the whole training; None if there is no end.
        batches: those that came.
        accumulate_grad_batches: the batches of an optimizer step.
        backward_batches: Number of batches with a backward pass.
        observed_optimizer_step: whether an optimizer has.
        has_single_loss: whether each batch went backward once at most: of several losses none is looked at.
        uses_grad_scaler: whether a gradient scaler skips steps that are not finite.
        first_losses: the losses of the first batches.
        recent_losses: the step and the loss of the last batches.
        probes: the batches that were looked at closely.
        comparisons: their losses beside others.
        gradients: the measured ones.
        weight_stats: each layer's norm and sum at the beginning of some steps.
        layer_order: the layers with weights, in the order in which they are called.
        input_stats: Statistics of the input of the first layer. None if it is not numeric.
        groups: the parameter groups.
        unoptimized_entries: entries that have a gradient and are in no optimizer, by layer.
        foreign_parameters: entries of optimizers that are none of the module's, where there are such.
        unregistered_entries: entries of parameters that the step uses, and that are in no submodule and no optimizer.
        duplicated_layers: layers whose parameters are in two groups.
        layers_with_gradient: layers that had one.
        first_gradient_step: Optimizer steps before a layer was first seen with a gradient.
        detached_layers: layers that the output depends on, and no gradient reaches, with the function that cut the
            graph.
        steps_without_gradient: steps looked at, from the first one on, at which no parameter had one.
        unused_layers: layers to be trained that the loss does not depend on.
        frozen_layers: layers that do not ask for a gradient.
        retained_gradients: by optimizer, in how many of how many steps gradients of the step before were still there.
        constant_target_samples: samples seen whose targets are all the same; None once two differ.
        targets_depend_on_inputs: whether the inputs, by themselves, tell something of the targets; None if that is not
            known.
        unit_activity: the dead units of what is known of the epoch, or of the validation.
        lagging_units: Activity in the validation pass of units that are active in training, by place. None until a
            place was measured in both.
        non_finite_origin: the first number that is not finite.
        validations: the passes.
        batch_waits: seconds of waiting and of work of the last batches.
        loader_name: Class name of the training loader.
        num_workers: Processes that fetch its batches. None if it is not a torch ``DataLoader``.
        rank_times: what the ranks took for themselves; None for a single one.
        replica_difference: the largest relative difference of the weights' sums between ranks.
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
    probes: list[Probe] = field(default_factory=list)
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
        """Whether an optimizer has taken a step, be it one that Lightning does not count."""
        return self.observed_optimizer_step or self.step > 0

    @property
    def has_badly_scaled_inputs(self) -> bool:
        """Whether the first layer takes numbers of a size, an offset or scales that no norm evens out."""
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
        """What each loss was called with in the batches that were looked at, by its name and the layer before it."""
        calls: dict[tuple[str, str], list[PredictionStats]] = {}
        for probe in self.probes:
            for stats in probe.predictions:
                calls.setdefault((stats.loss, stats.layer), []).append(stats)
        return list(calls.values())

    @property
    def is_classification(self) -> bool:
        """Whether the loss takes logits, or logarithms of probabilities."""
        return any(
            stats.loss_input in {"logits", "log-probabilities"} for probe in self.probes for stats in probe.predictions
        )

    @property
    def weight_norms(self) -> dict[int, dict[str, float]]:
        """Each layer's norm, by the steps that were done."""
        return {
            step: {layer: norm for layer, (norm, _) in layers.items()} for step, layers in self.weight_stats.items()
        }

    def has_collapsed(self, layer: str | None) -> bool:
        """Whether a layer's weights have shrunk to next to nothing."""
        norms = [layers[layer][0] for layers in self.weight_stats.values() if layer in layers]
        return len(norms) > 1 and norms[-1] < COLLAPSED_NORM_SHARE * norms[0]

    def loss_fell_by(self, share: float) -> bool:
        """Whether the loss has fallen by more than this share of what it was."""
        recent_losses = [loss for _, loss in self.recent_losses if math.isfinite(loss)][-10:]
        return (
            len(self.first_losses) >= 5
            and bool(recent_losses)
            and fmean(recent_losses) < (1 - share) * fmean(self.first_losses[:5])
        )

    def add_weights(self, step: int, weights: dict[str, tuple[float, float]], max_count: int) -> None:
        """Takes the weights at the beginning of a step; of more than ``max_count``, those after the first four go."""
        self.weight_stats[step] = weights
        for old_step in list(self.weight_stats)[4:-max_count]:
            del self.weight_stats[old_step]

    def add_validation(self, validation: ValidationPass, max_count: int) -> None:
        """Takes a pass; of more than ``max_count`` the best stays, and the last ones."""
        passes = [*self.validations, validation]
        best = min(passes, key=lambda candidate: candidate.loss)
        self.validations = [candidate for candidate in passes[:-max_count] if candidate is best] + passes[-max_count:]

    def add_probe(self, probe: Probe, max_count: int) -> None:
        """Adds a probe. Drops older probes like :meth:`add_validation`."""
        self.probes.append(probe)
        del self.probes[4:-max_count]
