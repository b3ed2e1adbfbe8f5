"""What is known of a training: all that the rules of ``stormproof.detect`` look at, as plain numbers."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

from stormproof.gradients.measurement import GradientMeasurement
from stormproof.health.confidence_interval import interval
from stormproof.health.observers.rank_compute_time import OwnTimes
from stormproof.health.observers.step_trace import ActivationCall, InputFacts, LayerCall, Stretched
from stormproof.units.unit_activity import UnitActivity

LARGE, SMALL, UNEVEN = 10.0, 1e-3, 300.0
"""Sizes of inputs for which no usual initialization is made; a ratio of two features' scales that is too large."""
COLLAPSED = 0.05
"""The share of a layer's first norm below which its weights have gone."""


@dataclass(frozen=True)
class PredictionFacts:
    """What the loss was called with, in one batch.

    Attributes:
        loss: the name of its function; empty for a callable of the user's.
        takes: what it takes, see ``standard_losses``; empty if that is not known.
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
        unreachable: the share of target entries beyond what ``made_by`` can give.
    """

    loss: str
    takes: str
    made_by: str
    layer: str
    outputs: int
    low: float
    high: float
    sums_to_one: bool
    logs_sum_to_one: bool
    spread: float | None
    target_low: float
    target_high: float
    unreachable: float


@dataclass(frozen=True)
class Comparison:
    """The loss of a batch beside what it would be: for the best constant prediction, and for others' targets."""

    step: int
    epoch: int
    loss: float
    constant: float | None
    permuted: float | None


@dataclass(frozen=True)
class Probe:
    """A batch that was looked at closely, after ``step`` optimizer steps."""

    step: int
    layers: tuple[LayerCall, ...] = ()
    activations: tuple[ActivationCall, ...] = ()
    stretched: tuple[Stretched, ...] = ()
    predictions: tuple[PredictionFacts, ...] = ()


@dataclass(frozen=True)
class Group:
    """A parameter group.

    Attributes:
        optimizer: the number of its optimizer.
        name: what to call it.
        lr: its learning rate.
        first_lr: the one that it began with.
        most_lr: the highest so far.
        base_lr: the one that a scheduler has multiples of; where there is none, the highest so far.
        zero_since: the step since which it is none, beside the highest; None where it is one.
    """

    optimizer: int
    name: str
    lr: float
    first_lr: float
    most_lr: float
    base_lr: float
    zero_since: int | None

    @property
    def is_rising(self) -> bool:
        """Whether it warms up."""
        return self.lr >= self.most_lr > self.first_lr


@dataclass(frozen=True)
class Broken:
    """The first number that is not finite.

    Attributes:
        step: the optimizer steps that were done.
        batch: the batch's number in its epoch.
        tensor: which one it was.
        layer: where; empty for the batch.
        in_data: whether it is the batch itself.
    """

    step: int
    batch: int
    tensor: str
    layer: str
    in_data: bool


@dataclass(frozen=True)
class Validated:
    """A pass over the validation data.

    Attributes:
        step: the optimizer steps that were done.
        losses: of its batches; empty where only a metric is known.
        loss: their mean, or the metric.
        training: the mean loss of the training since the pass before.
        samples: Number of samples. None if unknown.
    """

    step: int
    losses: tuple[float, ...]
    loss: float
    training: float | None
    samples: int | None = None

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return interval(self.losses)[1] if len(self.losses) > 1 else 0.0

    def is_above(self, other: Validated, *, lasts: bool = False) -> bool:
        """Whether its losses are greater than those of a pass over the same batches, beyond noise.

        Args:
            other: the other one.
            lasts: whether more than this pass tells so, so that less of it is enough.
        """
        if not self.losses:
            return self.loss > other.loss
        if len(self.losses) == len(other.losses) > 3:
            mean, error = interval([one - two for one, two in zip(self.losses, other.losses, strict=True)])
            return mean > (3 if lasts or len(self.losses) > 9 else 5) * error
        return self.loss > other.loss + 3 * math.hypot(self.error, other.error)


@dataclass
class Record:
    """All of it.

    Attributes:
        step: the optimizer steps that are done.
        epoch: the epochs that are.
        planned: the steps of the whole training; None if there is no end.
        batches: those that came.
        accumulates: the batches of an optimizer step.
        backwards: Number of batches with a backward pass.
        stepped: whether an optimizer has.
        one_loss: whether each batch went backward once at most: of several losses none is looked at.
        skipping: whether a gradient scaler skips steps that are not finite.
        first: the losses of the first batches.
        recent: the step and the loss of the last batches.
        probes: the batches that were looked at closely.
        comparisons: their losses beside others.
        gradients: the measured ones.
        weights: each layer's norm and sum at the beginning of some steps.
        in_order: the layers with weights, in the order in which they are called.
        inputs: what the first of them takes; None if that is no numbers.
        groups: the parameter groups.
        unowned: entries that have a gradient and are in no optimizer, by layer.
        stale: entries of optimizers that are none of the module's, where there are such.
        hidden: entries of parameters that the step uses, and that are in no submodule and no optimizer.
        twice: layers whose parameters are in two groups.
        has_gradient: layers that had one.
        gradient_since: Optimizer steps before a layer was first seen with a gradient.
        cut: layers that the output depends on, and no gradient reaches, with the function that cut the graph.
        without_gradient: steps looked at, from the first one on, at which no parameter had one.
        unused: layers to be trained that the loss does not depend on.
        frozen: layers that do not ask for a gradient.
        kept: by optimizer, in how many of how many steps gradients of the step before were still there.
        same_targets: samples seen whose targets are all the same; None once two differ.
        related: whether the inputs, by themselves, tell something of the targets; None if that is not known.
        places: the dead units of what is known of the epoch, or of the validation.
        lagging: Activity in the validation pass of units that are active in training, by place. None until a place was
            measured in both.
        broken: the first number that is not finite.
        validations: the passes.
        waits: seconds of waiting and of work of the last batches.
        loader: Class name of the training loader.
        workers: Processes that fetch its batches. None if it is not a torch ``DataLoader``.
        own_times: what the ranks took for themselves; None for a single one.
        replicas_differ: the largest relative difference of the weights' sums between ranks.
    """

    step: int = 0
    epoch: int = 0
    planned: int | None = None
    batches: int = 0
    accumulates: int = 1
    backwards: int = 0
    stepped: bool = False
    one_loss: bool = True
    skipping: bool = False
    first: list[float] = field(default_factory=list)
    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=512))
    probes: list[Probe] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    gradients: list[GradientMeasurement] = field(default_factory=list)
    weights: dict[int, dict[str, tuple[float, float]]] = field(default_factory=dict)
    in_order: list[str] = field(default_factory=list)
    inputs: InputFacts | None = None
    groups: list[Group] = field(default_factory=list)
    unowned: dict[str, int] = field(default_factory=dict)
    stale: int = 0
    hidden: int = 0
    twice: list[str] = field(default_factory=list)
    has_gradient: set[str] = field(default_factory=set)
    gradient_since: int = 0
    cut: dict[str, str] = field(default_factory=dict)
    without_gradient: int = 0
    unused: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    kept: dict[int, tuple[int, int]] = field(default_factory=dict)
    same_targets: int | None = 0
    related: bool | None = None
    places: dict[str, UnitActivity] = field(default_factory=dict)
    lagging: dict[str, UnitActivity] | None = None
    broken: Broken | None = None
    validations: list[Validated] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    loader: str = "DataLoader"
    workers: int | None = 0
    own_times: OwnTimes | None = None
    replicas_differ: float = 0.0

    @property
    def has_stepped(self) -> bool:
        """Whether an optimizer has taken a step, be it one that Lightning does not count."""
        return self.stepped or self.step > 0

    @property
    def inputs_are_bad(self) -> bool:
        """Whether the first layer takes numbers of a size, an offset or scales that no norm evens out."""
        facts = self.inputs
        if facts is None or facts.normalized:
            return False
        uneven = facts.largest_scale > LARGE and facts.largest_scale > UNEVEN * facts.smallest_scale
        return facts.rms > LARGE or facts.rms < SMALL or abs(facts.mean) > LARGE * facts.largest_scale > 0 or uneven

    @property
    def loss_calls(self) -> list[list[PredictionFacts]]:
        """What each loss was called with in the batches that were looked at, by its name and the layer before it."""
        calls: dict[tuple[str, str], list[PredictionFacts]] = {}
        for probe in self.probes:
            for facts in probe.predictions:
                calls.setdefault((facts.loss, facts.layer), []).append(facts)
        return list(calls.values())

    @property
    def classifies(self) -> bool:
        """Whether the loss takes logits, or logarithms of probabilities."""
        return any(facts.takes in {"logits", "log-probabilities"} for each in self.probes for facts in each.predictions)

    @property
    def weight_norms(self) -> dict[int, dict[str, float]]:
        """Each layer's norm, by the steps that were done."""
        return {step: {layer: norm for layer, (norm, _) in layers.items()} for step, layers in self.weights.items()}

    def has_collapsed(self, layer: str | None) -> bool:
        """Whether a layer's weights have shrunk to next to nothing."""
        norms = [layers[layer][0] for layers in self.weights.values() if layer in layers]
        return len(norms) > 1 and norms[-1] < COLLAPSED * norms[0]

    def learned_more_than(self, share: float) -> bool:
        """Whether the loss has fallen by more than this share of what it was."""
        recent = [loss for _, loss in self.recent if math.isfinite(loss)][-10:]
        return len(self.first) >= 5 and bool(recent) and fmean(recent) < (1 - share) * fmean(self.first[:5])

    def keep_weights(self, step: int, weights: dict[str, tuple[float, float]], most: int) -> None:
        """Takes the weights at the beginning of a step; of more than ``most``, those after the first four go."""
        self.weights[step] = weights
        for old in list(self.weights)[4:-most]:
            del self.weights[old]

    def keep_validation(self, validated: Validated, most: int) -> None:
        """Takes a pass; of more than ``most`` the best stays, and the last ones."""
        passes = [*self.validations, validated]
        best = min(passes, key=lambda each: each.loss)
        self.validations = [each for each in passes[:-most] if each is best] + passes[-most:]

    def keep_probe(self, probe: Probe, most: int) -> None:
        """Takes a close look, likewise."""
        self.probes.append(probe)
        del self.probes[4:-most]
