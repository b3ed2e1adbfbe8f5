"""Records of trainings, as they would be taken down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stormproof.gradients.measurement import GradientMeasurement
from stormproof.gradients.update_ratio import UpdateRatio
from stormproof.health.observations.data import InputStats
from stormproof.health.observations.gradients import Gradients
from stormproof.health.observations.losses import Losses
from stormproof.health.observations.optimizers import Optimizers, ParameterGroup
from stormproof.health.observations.predictions import Comparison, Predictions, PredictionStats, TracedStep
from stormproof.health.record import TOPICS, Record


def make_prediction_stats(**changes: Any) -> PredictionStats:
    """Logits of a cross-entropy, as they should be."""
    defaults: dict[str, Any] = {
        "loss": "cross_entropy", "loss_input": "logits", "producer": "linear", "layer": "head", "outputs": 4,
        "low": -2.0,
        "high": 2.0, "sums_to_one": False, "logs_sum_to_one": False, "spread": 0.5, "target_low": 0.0,
        "target_high": 3.0, "unreachable_share": 0.0,
    }  # fmt: skip
    return PredictionStats(**{**defaults, **changes})


def make_measurement(step: int, norms: dict[str, float], ratio: float = 0.01) -> GradientMeasurement:
    """A gradient and its update."""
    updates: dict[str, UpdateRatio | None] = {name: UpdateRatio(ratio, 0.0) for name in ("total", *norms)}
    return GradientMeasurement(step, 0, norms, updates, None, skipped=False)


def make_record(losses: list[float], constant: float | None = 1.4, ratio: float = 0.01, **fields: Any) -> Record:
    """Returns a record of a run with one optimizer, one loss per step, and three epochs of 40 steps."""

    def gap(step: int) -> float:  # of predictions that know something of their targets, or of those that do not
        return 0.5 if losses[-1] < 1 else 0.01 * (-1) ** (step // 4)

    record = Record(
        step=len(losses),
        epoch=len(losses) // 40,
        planned_steps=120,
        losses=Losses(losses[:20], list(enumerate(losses))),
        optimizers=Optimizers([ParameterGroup(0, "optimizer 0", 0.1, 0.1, 0.1, 0.1, None)]),
        gradients=Gradients([make_measurement(step, {"a": 1.0, "b": 1.0}, ratio) for step in (1, 10, 20)]),
        predictions=Predictions(
            [TracedStep(step, predictions=(make_prediction_stats(),)) for step in (0, 1, 2, 10, 20)],
            [
                Comparison(step, step // 40, losses[step], constant, losses[step] + gap(step))
                for step in range(0, len(losses), 4)
            ],
        ),
    )
    for name, value in fields.items():
        record = _with_field(record, name, value)
    return record


def _with_field(record: Record, name: str, value: Any) -> Record:
    """Returns a record with another value of one of its fields or of a field of one of its topics."""
    if hasattr(record, name):
        return replace(record, **{name: value})
    (topic,) = (topic for topic in sorted(TOPICS) if name in getattr(record, topic).__dataclass_fields__)
    return replace(record, **{topic: replace(getattr(record, topic), **{name: value})})


def make_input_stats(**changes: Any) -> InputStats:
    """Numbers of mean 0 and deviation 1."""
    defaults: dict[str, Any] = {
        "mean": 0.0,
        "rms": 1.0,
        "largest_scale": 1.2,
        "smallest_scale": 0.8,
        "is_normalized": False,
    }
    return InputStats(**{**defaults, **changes})


def oscillating_losses(level: float, count: int, size: float = 0.02) -> list[float]:
    """Losses around a level."""
    return [level + size * (-1) ** number for number in range(count)]


def falling_losses(begin: float, end: float, count: int) -> list[float]:
    """Losses that go down steadily."""
    return [begin + (end - begin) * number / count + 0.01 * (-1) ** number for number in range(count)]
