"""Rule for inputs whose scale harms the run."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.measures.progress import has_learned, has_risen, is_falling
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, NotEnoughEvidence, Rule

MAX_OUTPUT_RATIO = 5.0
"""First outputs are too large above this multiple of the targets, or of the best constant loss for the first loss."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports inputs whose scale or offset harms the run."""
    inputs = record.data.input_stats
    if inputs is None:
        yield NotEnoughEvidence("a traced step whose first layer has numeric inputs")
        return
    if not record.data.has_badly_scaled_inputs:
        return
    has_large_outputs = _has_large_outputs(record)
    is_saturated = any(
        call.saturated_share > 0.9 for trace in record.predictions.traces[:1] for call in trace.activation_calls
    )
    lacks_progress = has_learned(record) is False and not is_falling(record)
    if has_large_outputs or is_saturated or lacks_progress or has_risen(record) or record.non_finite:
        yield Finding(
            Problem.INPUT_BADLY_SCALED,
            Severity.WARNING,
            "input",
            0,
            record.step,
            {
                "mean": inputs.mean,
                "root_mean_square": inputs.rms,
                "largest_scale": inputs.largest_scale,
                "smallest_scale": inputs.smallest_scale,
            },
            "Standardize each feature with the mean and standard deviation of the training data, or start the network "
            "with a batch norm.",
        )


def _has_large_outputs(record: Record) -> bool:
    """Returns whether the first outputs far exceed the targets, or the first loss exceeds the best constant loss."""
    stats = next((entry for trace in record.predictions.traces[:1] for entry in trace.predictions), None)
    if stats is None or len(record.losses.first) < 3:
        return False
    if stats.loss_input == "numbers":
        return max(abs(stats.low), abs(stats.high)) > MAX_OUTPUT_RATIO * max(
            abs(stats.target_low), abs(stats.target_high)
        )
    constants = [
        entry.constant_loss
        for entry in record.predictions.comparisons
        if entry.constant_loss is not None and entry.constant_loss > 0
    ]
    return bool(constants) and fmean(record.losses.first[:3]) > MAX_OUTPUT_RATIO * constants[0]


RULE = Rule(
    Problem.INPUT_BADLY_SCALED,
    check,
    explains=NUMERICAL_SYMPTOMS - {Problem.INPUT_BADLY_SCALED},
    needs=frozenset({"data", "losses", "predictions"}),
)
