"""Rule for a loss that receives the wrong kind of input."""

from __future__ import annotations

from collections.abc import Iterator

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.observations.predictions import PredictionStats
from stormproof.health.record import Record
from stormproof.health.rule import NUMERICAL_SYMPTOMS, NotEnoughEvidence, Rule

MIN_TRACES = 2
"""Minimum number of batches with the same problem."""
SQUASHING_FUNCTIONS = frozenset({"sigmoid", "softmax", "hardsigmoid"})
DOUBLE_SIGMOID = "sigmoid of sigmoid"
MIN_CERTAIN_BATCHES = 5
"""Minimum number of batches with values between 0 and 1 if the function that computed them is unknown."""


def check(record: Record) -> Iterator[Finding | NotEnoughEvidence]:
    """Reports a loss that receives another kind of input than it expects, such as probabilities instead of logits."""
    if not any(len(calls) >= MIN_TRACES for calls in record.predictions.by_loss):
        yield NotEnoughEvidence(f"{MIN_TRACES} traced steps with a known loss")
        return
    for calls in record.predictions.by_loss:
        stats, actual_input = calls[0], _actual_loss_input(calls) if len(calls) >= MIN_TRACES else None
        if actual_input is not None:
            yield Finding(
                Problem.LOSS_INPUT_MISMATCH,
                Severity.WARNING,
                stats.layer,
                0,
                record.step,
                {"loss": stats.loss, "takes": stats.loss_input, "gets": actual_input},
                _ADVICE[stats.loss_input],
            )
            return


_ADVICE = {
    "logits": "Pass the output of the last layer to the loss without softmax or sigmoid.",
    "log-probabilities": "Use F.cross_entropy on logits, or F.nll_loss on F.log_softmax(logits, dim=1).",
    "probabilities": "Use F.binary_cross_entropy_with_logits on logits.",
}


def _actual_loss_input(calls: list[PredictionStats]) -> str | None:
    """Returns the kind of input that a loss receives in all batches. None if it is the expected one."""
    loss_input, loss, made_by = calls[0].loss_input, calls[0].loss, calls[0].producer
    is_unit_range = all(call.low >= 0 and call.high <= 1 for call in calls)
    if loss == "cross_entropy" and all(call.sums_to_one for call in calls):
        return "probabilities"
    if loss_input == "logits" and made_by in SQUASHING_FUNCTIONS and is_unit_range:
        return f"the output of a {made_by}"
    if (
        loss == "binary_cross_entropy_with_logits"
        and not made_by
        and is_unit_range
        and len(calls) >= MIN_CERTAIN_BATCHES
    ):
        return "values between 0 and 1"
    if loss_input == "probabilities" and made_by == DOUBLE_SIGMOID:
        return "a sigmoid of a sigmoid"
    if loss_input == "log-probabilities" and calls[0].outputs > 1 and not any(call.logs_sum_to_one for call in calls):
        sum_to_one = all(call.sums_to_one for call in calls)
        return "probabilities" if sum_to_one else "values that are not logarithms of probabilities"
    return None


RULE = Rule(
    Problem.LOSS_INPUT_MISMATCH,
    check,
    explains=NUMERICAL_SYMPTOMS,
    needs=frozenset({"predictions"}),
)
