"""Measurements of a run as plain numbers. All rules of ``stormproof.health`` read only these."""

from __future__ import annotations

from dataclasses import dataclass, field

from stormproof.health.observations.batches import Batches
from stormproof.health.observations.data import Data
from stormproof.health.observations.gradients import Gradients
from stormproof.health.observations.losses import Losses
from stormproof.health.observations.non_finite import NonFiniteOrigin
from stormproof.health.observations.optimizers import Optimizers
from stormproof.health.observations.predictions import Predictions
from stormproof.health.observations.ranks import Ranks
from stormproof.health.observations.timing import Timing
from stormproof.health.observations.units import Units
from stormproof.health.observations.weights import Weights


@dataclass(frozen=True)
class Record:
    """Measurements of a run by topic.

    Attributes:
        step: Number of optimizer steps so far. The first three fields, ``batches`` and ``non_finite`` need no topic.
        epoch: Number of epochs so far.
        planned_steps: Number of optimizer steps of the whole run. None if unlimited.
        batches: Counts of batches.
        losses: Training and validation losses.
        gradients: Gradients, updates, and the layers that gradients reach.
        weights: Weights of the layers.
        optimizers: Learning rates, and the parameters of the optimizers.
        data: Inputs and targets.
        predictions: Predictions and losses in traced steps.
        units: Units of activations.
        timing: Times of the training steps.
        ranks: Differences between ranks.
        non_finite: Origin of the first NaN or infinity. None without one. A non-finite gradient is found only if a rule
            needs ``gradients``.
    """

    step: int = 0
    epoch: int = 0
    planned_steps: int | None = None
    batches: Batches = field(default_factory=Batches)
    losses: Losses = field(default_factory=Losses)
    gradients: Gradients = field(default_factory=Gradients)
    weights: Weights = field(default_factory=Weights)
    optimizers: Optimizers = field(default_factory=Optimizers)
    data: Data = field(default_factory=Data)
    predictions: Predictions = field(default_factory=Predictions)
    units: Units = field(default_factory=Units)
    timing: Timing = field(default_factory=Timing)
    ranks: Ranks = field(default_factory=Ranks)
    non_finite: NonFiniteOrigin | None = None


TOPICS = frozenset({
    "losses", "gradients", "weights", "optimizers", "data", "predictions", "units", "timing", "ranks",
})  # fmt: skip
"""Topics of a :class:`Record` that a rule can need."""
TRACED_TOPICS = frozenset({"gradients", "weights", "optimizers", "data", "predictions"})
"""Topics that are measured in traced steps."""
